"""Markdown and HTML: data is escaped, and students' departures from the teacher are marked."""

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from kd_jax.reporting import page

NASTY = (
    "<script>alert(1)</script> a | b `code` **bold** [x](http://e) ![i](u)\n\n# head\n- item\n---\n\\| &lt; ~~s~~ $x$"
)
FLAT = " ".join(NASTY.split())
RENDER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def document(samples=(), **changed):
    sections = {
        "": [page.Table([["model", "x"], ["teacher", "1"]]), page.Notes(["n"])],
        "Plots": [page.Plots({"speed": "<svg></svg>"})],
        "Samples": [page.Samples(samples, ["teacher", "kd"])],
    }
    parts = {"title": "t", "lead": "l", "warnings": [], "versions": {"jax": "1"}, "resolved": "seed = 0"}
    return page.Document(**parts | {"sections": sections} | changed)


class Reader(HTMLParser):
    """Tags in order, and the text under each tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "hr", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        for tag in self.open:
            self.texts[tag] = self.texts.get(tag, "") + data


def nasty(text=NASTY):
    sample = {"source": text, "reference": text, "teacher": text, "kd": text}
    table = page.Table([["model", text], ["teacher", text]])
    sections = {
        "": [table, page.Paragraphs([text]), page.Notes([text])],
        text: [table, page.Plots({text: "<svg></svg>"})],
        "Samples": [page.Samples([sample], ["teacher", "kd"])],
        "Own texts": [page.OwnTexts({text: [page.OwnText(text, text, ended=True)]})],
    }
    return document(title=text, lead=text, warnings=[text], sections=sections, resolved=text, versions={text: text})


def test_markdown_escapes_everything():
    """A CommonMark parser finds the same tags as in harmless texts, and the same characters."""
    nasty_html, plain_html = (RENDER.render(page.markdown(nasty(text))) for text in (NASTY, "harmless"))
    assert "<script" not in page.markdown(nasty()) and "<script" not in nasty_html
    assert Reader(nasty_html).tags == Reader(plain_html).tags
    assert Reader(nasty_html).texts["h1"] == FLAT and Reader(nasty_html).texts["td"].count(FLAT) == 2
    assert Reader(nasty_html).texts["h2"].count(FLAT) == 1
    assert Reader(nasty_html).texts["ul"].count(FLAT) == 6 and Reader(nasty_html).texts["h3"].count(FLAT) == 1


def test_html_escapes_everything():
    written, plain = (Reader(page.html(nasty(text))) for text in (NASTY, "harmless"))
    assert written.tags == plain.tags and "script" not in written.tags and "<script" not in page.html(nasty())
    assert written.texts["h1"] == NASTY and written.texts["pre"] == NASTY and not written.open


def test_html_is_self_contained():
    text = page.html(document())
    assert not any(word in text for word in ("src=", "href=", "@import", "url(", "onload"))


@pytest.mark.parametrize("braces", ["{0}", "{{ document.title }}", "{{", "{% if %}"])
def test_braces_are_not_evaluated(braces):
    assert Reader(page.html(document(lead=braces))).texts["body"].count(braces) == 1


SAMPLE = {"source": "s", "reference": "r", "teacher": "a black cat sat", "kd": "a red|<b> cat sat"}


def test_words_unlike_the_teachers_are_marked():
    assert "a <mark>red|&lt;b&gt;</mark> cat sat" in page.html(document(samples=[SAMPLE]))
    written = page.markdown(document(samples=[SAMPLE]))
    assert "a **red\\|&lt;b&gt;** cat sat" in written
    assert Reader(RENDER.render(written)).texts["strong"] == "red|<b>"


@pytest.mark.parametrize("word", ["(en)", "*", "«a»", "c++", "_x_", "**", "a."])
def test_any_word_can_be_marked_in_markdown(word):
    sample = SAMPLE | {"kd": f"a {word} cat sat"}
    assert Reader(RENDER.render(page.markdown(document(samples=[sample])))).texts["strong"] == word


def test_equal_texts_are_not_marked():
    html = page.html(document(samples=[SAMPLE | {"kd": SAMPLE["teacher"]}]))
    assert "<mark>" not in html


def test_runs_join_to_the_text():
    text, other = "le le le chat dort ici", "le chat noir dort"
    assert " ".join(run for run, _ in page.runs_beside(text, other)).split() == text.split()
    assert page.runs_beside("", other) == [] and page.runs_beside(text, "") == [(text, True)]


def own_texts(*texts):
    return document(sections={"Own texts": [page.OwnTexts({"kd, step 1": texts})]})


def test_own_texts_have_a_heading_and_a_bounded_length():
    """An ellipsis stands for what is cut, a dash for an empty text, and a text without an end is marked."""
    texts = [page.OwnText("p" * 1000, "t" * 1000, ended=False), page.OwnText("", "", ended=True)]
    for written, of_text in ((page.markdown(own_texts(*texts)), "- {}: {}\n"), (page.html(own_texts(*texts)), None)):
        for name, text in (
            ("prompt", "p" * 239 + "…"),
            ("text", "t" * 239 + "… (no end)"),
            ("prompt", "–"),
            ("text", "–"),
        ):
            assert (of_text.format(name, text) if of_text else f"<dt>{name}</dt><dd>{text}</dd>") in written
        assert "p" * 240 not in written and "t" * 240 not in written and written.count("(no end)") == 2
    assert "### kd, step 1" in page.markdown(own_texts(*texts)) and "<h3>kd, step 1</h3>" in page.html(
        own_texts(*texts)
    )


def test_control_characters_of_own_texts_are_escaped():
    nasty_text = page.OwnText("a\x1b[2Jb", "c\u202ed\ud800e", ended=True)
    for written in (page.markdown(own_texts(nasty_text)), page.html(own_texts(nasty_text))):
        assert not set("\x1b\u202e\ud800") & set(written)
        assert "\\x1b" in written and "c\\u202ed\\ud800e" in written.replace("\\\\", "\\")


def test_empty_text_is_a_dash():
    sample = SAMPLE | {"kd": ""}
    assert "<dt>kd</dt><dd>–</dd>" in page.html(document(samples=[sample]))
    assert "- kd: –" in page.markdown(document(samples=[sample]))


def test_marks_name_the_model_in_the_teachers_place():
    """With an imported teacher the texts are compared with those of the first student."""
    sample = {"source": "s", "reference": "r", "init": "a cat", "kd": "a dog"}
    imported = document(sections={"Samples": [page.Samples([sample], ["init", "kd"])]})
    assert "Marked: words that init did not write." in page.html(imported)
    assert "Bold: words that init did not write." in page.markdown(imported)
    assert "Marked: words that the teacher did not write." in page.html(document())


def test_warnings_are_between_lead_and_table():
    warned = document(lead="LEAD", warnings=["WARN"])
    for text in (page.html(warned), page.markdown(warned)):
        assert text.index("LEAD") < text.index("WARN") < text.index("model")


def test_markdown_has_no_heading_for_a_section_of_plots():
    assert "## Plots" not in page.markdown(document()) and "<h2>Plots</h2>" in page.html(document())
    assert "## \n" not in page.markdown(document()) and "<h2></h2>" not in page.html(document())


def test_html_table_scrolls_in_its_own_box():
    text = page.html(document())
    assert text.count('<div class="scroll"><table>') == text.count("<table>") == 1
    assert ".scroll { overflow-x: auto;" in text
