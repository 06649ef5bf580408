"""The user's own files: what is found, what is converted, and how every kind of bad input is named."""

import gzip
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from etude.data import load_table, load_user
from etude.data.image_files import read_image
from etude.errors import DataError, MissingExtra, UsageError

pytest.importorskip("pandas", reason="optional: the extra tables is not installed")

ROWS = [
    f"{i},{'' if i % 7 == 0 else i * 1.5},{['red', 'blue', ''][i % 3]},2020-01-{1 + i % 28:02d},{'no' if i % 2 else 'yes'}"
    for i in range(60)
]
TABLE = "id,age,colour,when,y\n" + "\n".join(ROWS) + "\n"


@pytest.fixture
def write(tmp_path):
    def writer(text, name="my.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text, encoding="utf-8")
        return path

    return writer


def picture(path, size=(20, 16), mode="RGB", value=100):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("cat", "dog"):
        for i in range(6):
            picture(tmp_path / "pets" / name / f"{i}.png", size=(20 + i, 16), value=20 * i)
    return tmp_path / "pets"


# --- tables ----------------------------------------------------------------------------------------------------


def test_a_table_of_mixed_columns(write):
    data = load_user(write(TABLE), target="y")
    assert data.kind == "table"
    assert data.classes == ("no", "yes")
    assert list(data.columns) == ["age", "colour", "when"]
    assert data.meta["dropped"] == {"id": "numbers the rows"}
    task = data.task(0)
    assert task.meta["features"] == ("age", "age is missing", "colour=blue", "colour=red", "colour is missing", "when")
    assert task.train.x.dtype == torch.float32
    assert torch.isfinite(task.test.x).all()
    assert task.provenance[0]["name"] == "my.csv"
    assert len(task.provenance[0]["sha256"]) == 64


def test_the_target_is_found_by_its_name_alone(write):
    assert load_user(write(TABLE)).meta["target"] == "y"
    assert load_table(path=write(TABLE), target="y").classes == ("no", "yes")


def test_parquet_and_shards_give_the_same_table(write, tmp_path):
    pytest.importorskip("pyarrow", reason="optional: the extra tables is not installed")
    import pandas as pd

    frame = pd.read_csv(write(TABLE))
    frame.to_parquet(tmp_path / "my.parquet")
    (tmp_path / "shards").mkdir()
    frame[:30].to_parquet(tmp_path / "shards" / "0.parquet")
    frame[30:].to_parquet(tmp_path / "shards" / "1.parquet")
    expected = load_user(tmp_path / "my.csv", target="y").task(0)
    for path in (tmp_path / "my.parquet", tmp_path / "shards"):
        assert torch.equal(load_user(path, target="y").task(0).train.x, expected.train.x)


@pytest.mark.parametrize(
    "text",
    [
        "a;b;y\n" + "".join(f"{i},5;{i % 3};{'x' if i % 2 else 'z'}\n" for i in range(12)),
        "\ufeffa\tb\ty\r\n" + "".join(f"{i}.5\t{i % 3}\t{'x' if i % 2 else 'z'}\r\n" for i in range(12)),
        "a,b,y\n" + "".join(f"{i}.5,{i % 3},{'x' if i % 2 else 'z'} \n" for i in range(12)),
    ],
)
def test_separators_commas_and_byte_marks(write, text):
    data = load_user(write(text), target="y")
    assert data.columns["a"].tolist() == [i + 0.5 for i in range(12)]
    assert data.classes == ("x", "z")


def test_gzip_and_another_encoding(write):
    assert load_user(write(gzip.compress(TABLE.encode()), "my.csv.gz"), target="y").classes == ("no", "yes")
    accents = "a,y\n" + "".join(f"{i},{'é' if i % 2 else 'ü'}\n" for i in range(6))
    assert load_user(write(accents.encode("latin-1")), target="y").classes == ("é", "ü")


@pytest.mark.parametrize("tail", [",", ",,"])
def test_separators_at_the_ends_of_the_rows_shift_no_name(write, tail):
    text = "y,a,b\n" + "".join(f"{'pq'[i % 2]},{i % 3},{i * 1.5}{tail if i != 4 else ''}\n" for i in range(12))
    for data in (load_user(write(text)), load_table(path=write(text))):
        assert data.classes == ("p", "q")
        assert data.columns["a"].tolist() == [i % 3 for i in range(12)]
        assert data.columns["b"].tolist() == [i * 1.5 for i in range(12)]
    counted = "n,y\n" + "".join(f"{i},{'pq'[i % 2]}{tail}\n" for i in range(6))  # pandas would take n for row numbers
    assert load_user(write(counted)).columns["n"].tolist() == list(range(6))


def test_fields_without_a_name_are_refused_or_left_out(write):
    rows = [f"{'pq'[i % 2]},{i},{'more' if i in (0, 3) else ''}\n" for i in range(9)]
    with pytest.raises(DataError, match=r"row 1 of my.csv has more fields than its header has names \(2\)"):
        load_user(write("y,a\n" + "".join(rows)))
    data = load_user(write("y,a\n" + "".join(rows)), on_bad="skip")
    assert data.columns["a"].tolist() == [1, 2, 4, 5, 6, 7, 8]
    assert data.meta["left_out_rows"] == ["row 1 has too many fields", "row 4 has too many fields"]
    with pytest.raises(DataError, match="row 1 of"):
        load_user(write("y,a\n" + rows[0] * 4), on_bad="skip")


def test_numbered_classes_keep_their_order_and_booleans_work(write):
    data = load_user(write("a,y\n" + "".join(f"{i},{i % 3 + 9}.0\n" for i in range(9))), target="y")
    assert data.classes == ("9", "10", "11")
    assert data.y.tolist() == [0, 1, 2] * 3
    data = load_user(write("a,y\n" + "".join(f"{i},{i % 2 == 0}\n" for i in range(6))), target="y")
    assert data.classes == ("False", "True")


def test_infinite_values_are_holes_and_free_text_is_left_out(write):
    text = "a,note,y\n" + "".join(f"{'inf' if i == 3 else i},note number {i},{i % 2}\n" for i in range(80))
    data = load_user(write(text), target="y")
    assert np.isnan(data.columns["a"][3])
    assert data.meta["dropped"] == {"note": "names the rows or holds free text"}
    assert torch.isfinite(data.task(0).train.x).all()


def test_skipping_leaves_out_what_cannot_be_used(write):
    text = "a,y\n1,x\n2,x\n3,\n4,z\n5,z\n6,q\n"
    data = load_user(write(text), target="y", on_bad="skip")
    assert data.columns["a"].tolist() == [1, 2, 4, 5]
    assert data.meta["left_out_classes"] == ["q"]
    assert data.meta["left_out_rows"] == ["row 3 has no y"]
    ragged = "a,y\n1,x\n2,x,9\n3,x\n4,z\n5,z\n"
    data = load_user(write(ragged), target="y", on_bad="skip")
    assert len(data.y) == 4
    assert data.meta["left_out_rows"] == ["line 3 has too many fields"]
    documents = load_user(write("text\none\ntwo,9\nthree\n"), kind="documents", on_bad="skip")
    assert documents.meta["left_out"] == ["line 3 has too many fields"]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("", "y", r"my.csv is empty"),
        ("\n\n", "y", r"my.csv is empty"),
        ("a,y\n", "y", r"has no rows \(columns: a, y\)"),
        (TABLE, "Y", r"no column 'Y' \(did you mean 'y'\?\); it has id, age, colour, when, y"),
        (TABLE, "colr", r"did you mean 'colour'"),
        (
            "a,b\n1,2\n3,4\n",
            None,
            r"say which column of my.csv holds the classes: target=... .--target COLUMN.; it has a, b",
        ),
        ("a,y\n1,x\n2,x\n", "y", r"column 'y' of my.csv has only the class 'x': a classifier needs two"),
        ("a,y\n1,x\n2,x\n3,\n4,z\n5,z\n", "y", r"has no value in 1 of 5 rows \(row 3, the first being 1\)"),
        ("a,y\n1,x\n2,x\n4,z\n5,z\n6,q\n", "y", r"classes with a single row: q; they cannot stand"),
        ("a,y\n1,x\n2,x,3\n", "y", r"cannot be read as a table: .*Expected 2 fields in line 3, saw 3"),
        ("a,b,a,y\n1,2,3,x\n4,5,6,x\n", "y", r"my.csv has two columns named 'a': rename one"),
        ("a,y\n1,x\n".encode("utf-16"), "y", r"my.csv is UTF-16 .*: save it as CSV in UTF-8"),
        (b"a,y\n1,\x8d\x81\n", "y", r"my.csv is not text: save the table as CSV in UTF-8"),
        ("y\nx\nz\nx\nz\n", "y", r"no column to learn from \('y' is its only column\)"),
        ("a,y\n" + "".join(f"{i},{i * 0.37}\n" for i in range(50)), "y", r"looks like a measurement \(50 different"),
        ("a,y\n,x\n,x\n,z\n,z\n", "y", r"no column to learn from \(a: empty\)$"),
        (
            "a,y\n" + "".join(f"text {i},{i % 2}\n" for i in range(200)),
            "y",
            r"free text\); texts go in as JSON lines with \"text\" and \"label\"",
        ),
        (
            "a,y\n1,0\n2,0\n3,1\n4,1\n5,inf\n6,-inf\n",
            "y",
            r"'y' of my.csv, the classes, holds an infinite number: leave",
        ),
    ],
)
def test_bad_tables_are_named(write, text, target, message):
    with pytest.raises(DataError, match=message):
        load_user(write(text), target=target)


def test_a_class_too_small_for_three_parts_is_named_by_the_split(write):
    text = "a,y\n" + "".join(f"{i},{'rare' if i < 2 else i % 2}\n" for i in range(20))
    with pytest.raises(ValueError, match=r"too few rows to stand in each of 3 parts: rare \(2\)"):
        load_user(write(text), target="y").task(0)


def test_a_damaged_parquet_file_is_named(write):
    with pytest.raises(DataError, match=r"my.parquet cannot be read as a table"):
        load_user(write(b"PAR1 not really", "my.parquet"), target="y")
    with pytest.raises(DataError, match=r"my.parquet is empty"):
        load_user(write(b"", "my.parquet"), target="y")


@pytest.mark.parametrize("name", ["my.csv.gz", "my.jsonl.gz"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_gzip_is_named(write, name, damage):
    whole = gzip.compress("".join(f"{i},{i * i % 977}\n" for i in range(4000)).encode())
    middle = len(whole) // 2
    bad = whole[:middle] if damage == "cut" else whole[:middle] + bytes(64) + whole[middle + 64 :]
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        load_user(write(bad, name), target="y")


@pytest.mark.parametrize("name", ["MY.PARQUET", "shards/A.Parquet"])
def test_the_suffix_may_be_in_capitals(write, name):
    import io

    import pandas as pd

    buffer = io.BytesIO()
    pd.DataFrame({"a": range(4), "y": list("xxzz")}).to_parquet(buffer)
    path = write(buffer.getvalue(), name)
    assert len(load_user(path.parent if "/" in name else path, target="y").y) == 4


def test_without_pandas_the_extra_is_named(write, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(MissingExtra, match=r"pip install 'etude\[tables\]'"):
        load_user(write(TABLE), target="y")


@given(
    cells=st.lists(
        st.tuples(
            st.one_of(st.none(), st.floats(allow_nan=False, width=32), st.integers(-(10**6), 10**6)),
            st.one_of(st.none(), st.text(alphabet="ab é\"',;\n", max_size=5)),
        ),
        min_size=12,
        max_size=30,
    )
)
@settings(max_examples=25)
def test_whatever_stands_in_the_cells_the_features_are_finite(tmp_path_factory, cells):
    import pandas as pd

    path = tmp_path_factory.mktemp("t") / "my.csv"
    frame = pd.DataFrame({"n": [c[0] for c in cells], "w": [c[1] for c in cells], "k": range(3, 3 + len(cells))})
    frame["y"] = ["a" if i % 2 else "b" for i in range(len(cells))]
    frame.to_csv(path, index=False)
    task = load_user(path, target="y").task(0)
    for part in (task.train, task.val, task.test):
        assert torch.isfinite(part.x).all()
        assert part.x.shape[1] == len(task.meta["features"])


# --- images ----------------------------------------------------------------------------------------------------


def test_a_folder_of_images(folder):
    data = load_user(folder)
    assert data.kind == "images"
    assert data.classes == ("cat", "dog")
    assert data.x.shape == (12, 3, 64, 64)
    assert data.y.tolist() == [0] * 6 + [1] * 6
    assert float(data.x[5].mean()) == pytest.approx(100 / 255, abs=1e-3)
    assert load_user(folder, size=(10, 8)).x.shape[-2:] == (10, 8)
    assert data.task(0).test.x.shape[1:] == (3, 64, 64)


def test_images_of_one_size_keep_it_and_grey_stays_grey(tmp_path):
    for name in "ab":
        for i in range(3):
            picture(tmp_path / name / "deep" / f"{i}.PNG", size=(30, 12), mode="L")
    (tmp_path / "a" / "notes.md").write_text("not an image")
    picture(tmp_path / "a" / ".hidden" / "0.png")
    assert load_user(tmp_path).x.shape == (6, 1, 12, 30)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_one_scale(tmp_path, mode):
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    path = tmp_path / ("x.tif" if mode in ("CMYK", "F", "I") else "x.png")
    if mode in deep:
        top = 1.0 if mode == "F" else 65535
        values = np.linspace(0, top, 64).reshape(8, 8).astype(deep[mode])
        Image.fromarray(values).save(path)
    else:
        values = np.linspace(0, 255, 64).reshape(8, 8).astype(np.uint8)
        Image.fromarray(values).convert("RGB").convert(mode).save(path)
    x = read_image(path)
    assert x.dtype == torch.float32
    assert x.shape[0] == (3 if mode in ("P", "RGB", "RGBA", "CMYK") else 1)
    assert float(x.min()) == pytest.approx(0, abs=0.01)
    assert float(x.max()) == pytest.approx(1, abs=0.02)
    assert float(x.mean()) == pytest.approx(0.5, abs=0.05)


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
    Image.fromarray(np.full((4, 4), 200, dtype=np.uint16)).save(tmp_path / "dark.png")
    assert float(read_image(tmp_path / "dark.png").max()) == pytest.approx(200 / 65535)


def test_transparent_parts_are_white_and_cameras_orientation_is_applied(tmp_path):
    Image.new("RGBA", (4, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert torch.equal(read_image(tmp_path / "clear.png"), torch.ones(3, 2, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (4, 2)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (1, 4, 2)


def test_a_damaged_image_is_named_or_skipped(folder):
    (folder / "cat" / "bad.png").write_bytes(b"not a picture")
    whole = (folder / "dog" / "0.png").read_bytes()
    (folder / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r'(?s)unreadable images.*cat/bad.png.*dog/cut.png.*on_bad="skip"'):
        load_user(folder)
    data = load_user(folder, on_bad="skip")
    assert len(data.x) == 12
    assert [text.split()[0] for text in data.meta["left_out_files"]] == ["cat/bad.png", "dog/cut.png"]


def test_a_class_folder_that_cannot_be_listed_is_named(folder, monkeypatch):
    whole = os.scandir

    def scandir(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match="pets cannot be read: .*Permission denied.*dog"):
        load_user(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loose", r"holds no images in sub-folders: put each class into a folder of its own"),
        ("one class", r"has only the class 'cat': a classifier needs two"),
        ("single", r"classes with a single image: emu"),
        ("empty class", r"class folders without an image: emu"),
    ],
)
def test_bad_folders_are_named(tmp_path, folder, change, message):
    target = folder
    if change == "loose":
        target = tmp_path / "loose"
        picture(target / "a.png")
    elif change == "one class":
        target = tmp_path / "one"
        picture(target / "cat" / "a.png")
        picture(target / "cat" / "b.png")
    elif change == "single":
        picture(folder / "emu" / "a.png")
    else:
        (folder / "emu").mkdir()
    with pytest.raises(DataError, match=message):
        load_user(target)


# --- documents -------------------------------------------------------------------------------------------------

LINES = [{"text": f"text {i}", "label": "pos" if i % 2 else "neg", "group": i // 2} for i in range(12)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines(write):
    data = load_user(write(lines(LINES), "my.jsonl"))
    assert data.kind == "documents"
    assert data.classes == ("neg", "pos")
    assert data.texts[3] == "text 3"
    task = data.task(0)
    assert not set(task.train.groups.tolist()) & set(task.test.groups.tolist())
    as_list = load_user(write(json.dumps(LINES), "my.json"))
    packed = load_user(write(gzip.compress(lines(LINES).encode()), "my.jsonl.gz"))
    assert as_list.texts == packed.texts == data.texts


def test_other_field_names_and_no_labels(write):
    rows = [{"body": r["text"], "stars": i % 3} for i, r in enumerate(LINES)]
    data = load_user(write(lines(rows), "my.jsonl"), text="body", target="stars")
    assert data.classes == ("0", "1", "2")
    plain = load_user(write(lines([{"text": "a"}, {"text": "a"}]), "my.jsonl"))
    assert plain.labels is None
    assert plain.meta["duplicates"] == 1


def test_documents_without_a_group_stand_alone(write):
    rows = [{k: v for k, v in row.items() if k != "group" or i < 6} for i, row in enumerate(LINES)]
    assert load_user(write(lines(rows), "my.jsonl")).groups.unique().numel() == 3 + 6


def test_a_saved_data_set_of_hugging_face_is_a_table_or_documents(tmp_path):
    arrow = pytest.importorskip("pyarrow", reason="optional: the extra tables is not installed")
    table = arrow.table({"text": [f"t{i}" for i in range(8)], "label": [i % 2 for i in range(8)], "n": list(range(8))})
    for part in ("train", "test"):
        (tmp_path / "saved" / part).mkdir(parents=True)
        shard = str(tmp_path / "saved" / part / "data-00000-of-00001.arrow")
        with arrow.OSFile(shard, "wb") as sink, arrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    (tmp_path / "saved" / "train" / "cache-1.arrow").write_bytes(b"left over")
    assert len(load_user(tmp_path / "saved", target="label").y) == 16
    assert load_user(tmp_path / "saved", text="text").texts[:2] == ["t0", "t1"]


def test_a_table_with_a_column_of_texts(write):
    path = write("text,label\n" + "".join(f"some words {i},{i % 2}\n" for i in range(8)))
    data = load_user(path, text="text", target="label")
    assert data.kind == "documents"
    assert data.classes == ("0", "1")
    assert load_user(path, kind="documents").texts == data.texts


def test_a_folder_of_texts(tmp_path):
    for name in ("ham", "spam"):
        for i in range(3):
            path = tmp_path / "mail" / name / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name} {i}")
    data = load_user(tmp_path / "mail")
    assert data.classes == ("ham", "spam")
    assert data.meta["files"][0].endswith("0.txt")
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.txt").write_text("alone")
    assert load_user(tmp_path / "flat").labels is None
    (tmp_path / "mail" / "ham" / "empty.txt").write_text(" ")
    with pytest.raises(DataError, match=r"unusable text files.*empty.txt is empty"):
        load_user(tmp_path / "mail")
    assert len(load_user(tmp_path / "mail", on_bad="skip").texts) == 6
    (tmp_path / "mail" / "ham" / "empty.txt").unlink()
    (tmp_path / "mail" / "stray.txt").write_text("stray")
    with pytest.raises(DataError, match=r"these files lie outside them: stray.txt"):
        load_user(tmp_path / "mail")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, r"my.jsonl is empty"),
        (lines(LINES) + "{broken\n", {}, r"line 13 is not JSON"),
        (lines(LINES) + "[1]\n", {}, r"line 13 is not an object"),
        (lines(LINES) + '{"label": "pos"}\n', {}, r"line 13 has no text"),
        (lines(LINES) + '{"text": "x"}\n', {}, r"line 13 has no label"),
        (lines(LINES) + '{"text": "x", "label": null}\n', {}, r"line 13 has no label"),
        (lines(LINES), {"target": "lable"}, r"no field 'lable' \(did you mean 'label'\?\); it has text, label, group"),
        (lines(LINES), {"text": "body"}, r"no field 'body'; it has text, label, group \(text= names it\)"),
        (lines([{"text": "a", "label": 1}, {"text": "b", "label": 1}]), {}, r"has only the class '1'"),
        (lines([*LINES, {"text": "x", "label": "odd"}]), {}, r"classes with a single document: odd"),
        ("[1, 2", {}, r"is not a JSON list"),
    ],
)
def test_bad_documents_are_named(write, text, options, message):
    with pytest.raises(DataError, match=message):
        load_user(write(text, "my.jsonl"), **options)


def test_bad_lines_can_be_skipped(write):
    data = load_user(write(lines(LINES) + '{broken\n{"text": "x"}\n', "my.jsonl"), on_bad="skip")
    assert len(data.texts) == 12
    assert [note.split(" ")[1] for note in data.meta["left_out"]] == ["13", "14"]


# --- which kind it is ------------------------------------------------------------------------------------------


def test_what_cannot_be_told_is_asked(write, tmp_path):
    with pytest.raises(DataError, match=r"nothing.csv does not exist"):
        load_user(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match=r"cannot tell what my.bin is: give kind="):
        load_user(write("x", "my.bin"))
    (tmp_path / "void").mkdir()
    with pytest.raises(DataError, match=r"holds no images, no .txt files and no Parquet files"):
        load_user(tmp_path / "void")
    picture(tmp_path / "both" / "a" / "a.png")
    write("x", "both/a/a.txt")
    with pytest.raises(DataError, match=r'say which with kind="images" or kind="documents"'):
        load_user(tmp_path / "both")
    with pytest.raises(DataError, match=r"my.csv is not a folder"):
        load_user(write(TABLE), kind="images")
    with pytest.raises(UsageError, match=r"got 'sounds'"):
        load_user(write(TABLE), kind="sounds")
    with pytest.raises(UsageError, match=r"got 'ignore'"):
        load_user(write(TABLE), on_bad="ignore")
