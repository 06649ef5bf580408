"""What a mail says around the papers, in the languages that a subscriber can choose. The subject stays one pattern."""

LANGUAGES = {"en": "English", "de": "Deutsch", "es": "Español", "fr": "Français"}

_WORDS = {
    "changes": {
        "en": "Verdicts that changed since your last mail", "de": "Urteile, die sich seit der letzten Mail änderten",
        "es": "Veredictos que cambiaron desde el último correo",
        "fr": "Verdicts qui ont changé depuis le dernier courriel",
    },
    "papers": {"en": "Papers", "de": "Arbeiten", "es": "Artículos", "fr": "Articles"},
    "none": {"en": "no verdict", "de": "kein Urteil", "es": "sin veredicto", "fr": "sans verdict"},
    "holds": {"en": "holds", "de": "hält", "es": "se cumple", "fr": "tient"},
    "fails": {"en": "fails", "de": "hält nicht", "es": "no se cumple", "fr": "ne tient pas"},
    "inconclusive": {"en": "inconclusive", "de": "offen", "es": "no concluyente", "fr": "non concluant"},
    "weekdays": {
        "en": "You get this every weekday.", "de": "Diese Mail kommt an jedem Werktag.",
        "es": "Recibes esto cada día laborable.", "fr": "Vous recevez ceci chaque jour ouvrable.",
    },
    "weekly": {
        "en": "You get this weekly.", "de": "Diese Mail kommt jede Woche.", "es": "Recibes esto cada semana.",
        "fr": "Vous recevez ceci chaque semaine.",
    },
    "monthly": {
        "en": "You get this monthly.", "de": "Diese Mail kommt jeden Monat.", "es": "Recibes esto cada mes.",
        "fr": "Vous recevez ceci chaque mois.",
    },
    "leave": {
        "en": "Leave with one click", "de": "Mit einem Klick abbestellen", "es": "Darse de baja con un clic",
        "fr": "Se désabonner en un clic",
    },
    "asked": {
        "en": "Somebody, most likely you, asked for the Etude digest for this address.",
        "de": "Jemand, vermutlich du, hat die Etude-Mail für diese Adresse bestellt.",
        "es": "Alguien, probablemente tú, pidió el boletín de Etude para esta dirección.",
        "fr": "Quelqu'un, sans doute vous, a demandé le bulletin d'Etude pour cette adresse.",
    },
    "begin": {
        "en": "Open this link and press the button to begin. It works once, for 48 hours:",
        "de": "Öffne diesen Link und drücke den Knopf, dann beginnt es. Er gilt einmal, 48 Stunden lang:",
        "es": "Abre este enlace y pulsa el botón para empezar. Vale una vez, durante 48 horas:",
        "fr": "Ouvrez ce lien et appuyez sur le bouton pour commencer. Il sert une fois, pendant 48 heures :",
    },
    "known": {
        "en": "Somebody asked for the Etude digest for this address, which gets it already.",
        "de": "Jemand hat die Etude-Mail für diese Adresse bestellt, die sie schon bekommt.",
        "es": "Alguien pidió el boletín de Etude para esta dirección, que ya lo recibe.",
        "fr": "Quelqu'un a demandé le bulletin d'Etude pour cette adresse, qui le reçoit déjà.",
    },
    "unchanged": {
        "en": "Nothing has changed. Every digest holds a link to leave.",
        "de": "Es hat sich nichts geändert. In jeder Mail steht ein Link zum Abbestellen.",
        "es": "Nada ha cambiado. Cada correo lleva un enlace para darse de baja.",
        "fr": "Rien n'a changé. Chaque courriel contient un lien de désabonnement.",
    },
    "otherwise": {
        "en": "If it was not you, do nothing: no mail will follow.",
        "de": "Wenn du es nicht warst, tu nichts: Es kommt keine weitere Mail.",
        "es": "Si no fuiste tú, no hagas nada: no llegará ningún otro correo.",
        "fr": "Si ce n'était pas vous, ne faites rien : aucun autre courriel ne suivra.",
    },
}  # fmt: skip


def words(language: str) -> dict[str, str]:
    """The phrases of a language; English for one that is not known."""
    known = language if language in LANGUAGES else "en"
    return {key: said[known] for key, said in _WORDS.items()}
