"""The code digest follows a study to the definitions that it reaches, and no further."""

import ast
import textwrap

import pytest

from etude.lab import digest
from etude.lab.registry import runnable


@pytest.mark.parametrize("slug", runnable())
def test_a_study_reaches_its_room_and_never_the_lab(slug):
    modules = digest.modules_behind(slug)
    assert modules[0].startswith("etude.")
    assert f"etude.studies.{slug.replace('-', '_')}" in modules
    assert not [m for m in modules if m.startswith(("etude.lab", "etude.catalogue", "etude.cli"))]
    assert len(modules) > 2
    assert digest.code_digest(slug) == digest.code_digest(slug)


@pytest.mark.parametrize("slug", runnable())
def test_whatever_is_reached_exists(slug):
    for module, name in digest.reached(slug):
        assert name is None or name in digest._module(module).definitions, (module, name)


def test_a_name_leads_to_its_definition_not_to_the_whole_room():
    assert digest._resolve("etude.layers", "mlp") == ("etude.layers.mlp", "mlp")
    assert digest._resolve("etude.incontext", "linear") == ("etude.incontext.linear", None)
    assert digest._resolve("torch", "nn") == ("torch", "nn")


def test_studies_reach_the_engine_and_their_method():
    assert ("etude.training.engine", "train") in digest.reached("train-longer")
    assert ("etude.training.ghost_batchnorm", "ghost_batch_norm") in digest.reached("train-longer")
    assert ("etude.incontext.references", "reference") in digest.reached("icl-linear-models")
    assert ("etude.training.engine", "train") in digest.reached("icl-linear-models")


def test_docstrings_and_comments_do_not_count_code_does():
    one, two, three, four = (
        digest._written(ast.parse(text).body)
        for text in (
            'def f(x):\n    """A."""\n    return x + 1\n',
            "def f(x):\n    # b\n    return x + 1\n",
            "def f(x):\n    return x + 2\n",
            'def f(x):\n    return x + "1"\n',
        )
    )
    assert one == two
    assert len({one, three, four}) == 3


def test_the_text_of_a_syntax_tree_is_the_same_under_every_python():
    """3.12 gave definitions type parameters, 3.13 leaves empty lists out of `ast.dump`: no run is stale for that."""
    tree = ast.parse('class A(B):\n    def f(self, *a, k=None) -> int:\n        return {**a, 1: f"{k!r:>3}"}\n')
    assert digest._written(tree.body) == (
        "[(ClassDef name='A' bases=[(Name id='B')] body=["
        "(FunctionDef name='f' args=(arguments args=[(arg arg='self')] vararg=(arg arg='a')"
        " kwonlyargs=[(arg arg='k')] kw_defaults=[None]) body=["
        "(Return value=(Dict keys=[None,1] values=[(Name id='a'),(JoinedStr values=["
        "(FormattedValue value=(Name id='k') conversion=114 format_spec=(JoinedStr values=['>3']))])]))]"
        " returns=(Name id='int'))])]"
    )


BASE = {
    "__init__": "",
    "studies/__init__": "",
    "studies/a_paper": """
        from etude import rooms
        from etude.rooms import late, method
        from etude.rooms.table import CHOICES as OURS

        def measure(job):
            from etude.rooms.inner import deep
            return method(job) + rooms.other.part(job) + OURS[job]() + deep()

        class Study:
            configs: dict = {"quick": 3, "laptop": 5}
            def plots(self):
                return rooms.other.apart(self)
        """,
    "rooms/__init__": """
        from etude.rooms.one import method as method
        from etude.rooms.one import never as never
        from etude.rooms import late as late
        """,
    "rooms/one": """
        \"\"\"Prose.\"\"\"
        from etude.rooms.leaf import SIZE
        LIMIT: int = SIZE
        def method(x):
            return _step(x) if x < LIMIT else Kind().go(x)
        def _step(x):
            return x
        class Kind:
            def go(self, x):
                return x
        def never():
            return 1
        """,
    "rooms/leaf": "SIZE = 3\nOTHER = 4\n",
    "rooms/other": "def part(x):\n    return x\ndef apart(x):\n    return x\n",
    "rooms/late": "def whole():\n    return 1\n",
    "rooms/table": "def left():\n    return 1\ndef right():\n    return 2\nCHOICES = {'l': left}\nCHOICES['r'] = right\n",
    "rooms/inner": "def deep():\n    return 1\n",
}


@pytest.fixture
def changed(tmp_path, monkeypatch):
    """The digest of a small package, with some of its text replaced."""

    def make(module="", old="", new="", tier=None):
        root = tmp_path / "etude"
        for name, text in BASE.items():
            text = textwrap.dedent(text)
            if name == module:
                assert old in text
                text = text.replace(old, new) if old else text + new
            path = (root / name).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        monkeypatch.setattr(digest, "_root", lambda: root)
        digest._parsed.cache_clear()
        digest._statement.cache_clear()
        return digest.code_digest("a-paper", tier)

    return make


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("studies/a_paper", "+ deep()", "- deep()"),
        ("studies/a_paper", "", "EXTRA = 1\n"),  # the study's own file counts as a whole
        ("rooms/one", "return _step(x)", "return -_step(x)"),
        ("rooms/one", "def _step(x):\n    return x", "def _step(x):\n    return x + 1"),
        ("rooms/one", "def go(self, x):\n        return x", "def go(self, x):\n        return x + 1"),
        ("rooms/leaf", "SIZE = 3", "SIZE = 5"),
        ("rooms/other", "def part(x):\n    return x", "def part(x):\n    return 2 * x"),
        ("rooms/table", "return 1", "return 3"),
        ("rooms/table", "return 2", "return 3"),  # written into the table by a statement that runs on import
        ("rooms/inner", "return 1", "return 3"),
    ],
)
def test_a_change_of_what_is_reached_moves_the_digest(changed, module, old, new):
    assert changed(module, old, new) != changed()


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("rooms/one", "def never():\n    return 1", "def never():\n    return 7"),
        ("rooms/one", "", "def added():\n    return _step(2)\n"),
        ("rooms/one", "Prose.", "Better prose."),
        ("rooms/leaf", "OTHER = 4", "OTHER = 5"),
        ("rooms/other", "def apart(x):\n    return x", "def apart(x):\n    return 2 * x"),
        ("rooms/__init__", "", "from etude.rooms.leaf import OTHER as OTHER\n"),
    ],
)
def test_a_change_beside_it_does_not(changed, module, old, new):
    assert changed(module, old, new) == changed()


def test_a_module_handed_about_as_an_object_counts_as_a_whole(changed):
    plain = changed("studies/a_paper", "method(job)", "job.do(late)")
    assert changed("rooms/late", "return 1", "return 2") == changed()  # imported, never named
    assert ("etude.rooms.late", "whole") not in digest.reached("a-paper")
    assert changed("studies/a_paper", "method(job)", "job.do(late)") == plain
    assert ("etude.rooms.late", "whole") in digest.reached("a-paper")


def test_another_tiers_configuration_and_plots_leave_a_run_valid(changed):
    for tier in ("quick", "laptop"):
        now = changed(tier=tier)
        assert changed("studies/a_paper", f'"{tier}": ', f'"{tier}": 1 + ', tier=tier) != now
    assert changed("studies/a_paper", '"quick": 3', '"quick": 4', tier="laptop") == changed(tier="laptop")
    assert changed("studies/a_paper", '"quick": 3', '"quick": 4') != changed()
    assert changed("studies/a_paper", "apart(self)", "apart(self, 2)") == changed()
    assert changed("rooms/other", "def apart(x):\n    return x", "def apart(x):\n    return -x") == changed()


def test_which_plan_is_quickest_does_not_count_what_the_plans_run_does(changed, monkeypatch):
    monkeypatch.setattr(digest, "_SCHEDULING", ("etude.rooms.one",))
    assert changed("rooms/one", "return _step(x)", "return -_step(x)") == changed()
    assert changed("rooms/leaf", "SIZE = 3", "SIZE = 5") != changed()
    monkeypatch.undo()
    assert all(digest._path(module) for module in digest._SCHEDULING)
