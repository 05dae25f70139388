import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest

from selfmoe_ray.reporting.page import write_report
from selfmoe_ray.run.run_dir import RunDir

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks that elements nest and close, and keeps what the tests look at."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(run_dir: RunDir) -> str:
    return run_dir.storage.read_bytes("report/index.html").decode()


@pytest.fixture
def html(config, finished):
    write_report(config, finished)
    return read(finished)


def test_the_page_is_well_formed_with_unique_ids_and_working_anchors(html):
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = [link["href"][1:] for link in page.all("a") if link["href"].startswith("#")]
    assert len(anchors) > 5
    assert set(anchors) <= set(ids)


def test_the_page_needs_nothing_from_outside(html):
    page = Page(html)
    assert not [name for name, _ in page.tags if name in ("script", "iframe", "object", "img")]
    links = [attributes[key] for _, attributes in page.tags for key in ("href", "src") if key in attributes]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "url(" not in html
    assert "@import" not in html


def test_generated_text_is_shown_and_never_markup(html):
    assert "<script" not in html
    assert "<b>bold</b>" not in html
    page = Page(html)
    assert page.text.count("<script>alert('x')</script> & <b>bold</b>") >= 8
    tokens = [each for each in page.all("span") if each.get("class", "").startswith("token") and "title" in each]
    assert tokens[0]["title"] == "math 0.00, coding 0.60"


def test_every_table_has_its_csv_in_the_page_and_beside_it(html, finished):
    page = Page(html)
    names = [table["data-name"] for table in page.all("table") if "data-name" in table]
    assert {
        "nll_held_out",
        "nll_seeds",
        "yields",
        "rejects",
        "routing",
        "stages",
        "losses",
        "parameters",
    } <= set(names)
    assert len(names) == len(set(names))
    downloads = {link["download"]: link["href"] for link in page.all("a") if "download" in link}
    for name in names:
        beside = finished.storage.read_bytes(f"report/tables/{name}.csv")
        assert base64.b64decode(downloads[f"{name}.csv"].split(",", 1)[1]) == beside
        rows = list(csv.reader(io.StringIO(beside.decode())))
        assert len(rows) > 1
        assert {len(row) for row in rows} == {len(rows[0])}


def test_the_header_says_how_mixse_compares(html):
    text = Page(html).text
    assert "MiXSE's mean response NLL is 1.030 below the base: 1.700, difference −0.670 ± 0.020" in text
    assert "below the best single expert, coding: 1.450, difference −0.420 ± 0.020" in text
    assert "1.0% above the own-domain oracle: 1.020" in text


def test_the_figures_of_training_are_there(html):
    labels = {svg.get("aria-label") for svg in Page(html).all("svg")}
    assert {
        "Loss of each expert by epoch",
        "Loss of the router by epoch",
        "Accuracy of the router's fit by layer",
    } <= labels


def test_a_finished_run_has_no_warning(html):
    assert not [attributes for _, attributes in Page(html).tags if attributes.get("role") == "alert"]


def test_collapse_is_loud(config, finished, write_collapsed):
    write_collapsed(finished)
    write_report(config, finished)
    page = Page(read(finished))
    assert [attributes for _, attributes in page.tags if attributes.get("role") == "alert"]
    assert "The router has collapsed: at least 97% of every domain's tokens go to expert math." in page.text


def test_too_few_examples_are_a_warning(config, finished):
    manifest = finished.read_manifest("data/math")
    manifest["counts"]["examples"] = 5
    finished.storage.write_json("data/math/manifest.json", manifest)
    write_report(config, finished)
    assert "Domain math has 5 of the 6 examples asked for." in Page(read(finished)).text


def test_an_empty_run_gives_a_page(config, run_dir):
    write_report(config, run_dir)
    page = Page(read(run_dir))
    assert {link["href"] for link in page.all("a") if link["href"].startswith("#")} == {
        "#content",
        "#time",
        "#provenance",
    }


@pytest.mark.parametrize(
    "missing",
    ["data/math", "experts/coding", "router", "router/fitted", "mixse", "measure", "provenance.json"],
)
def test_each_part_may_be_missing(config, finished, missing):
    finished.storage.delete(missing)
    write_report(config, finished)
    Page(read(finished))


def test_a_row_set_without_one_domain_is_shown(config, finished):
    measured = finished.storage.read_json("measure/nll.json")
    row_set = measured["row_sets"]["seeds"]
    for counts in (
        row_set["rows"],
        row_set["tokens"],
        *(each["nll"] for each in row_set["systems"].values()),
    ):
        del counts["coding"]
    finished.storage.write_json("measure/nll.json", measured)
    write_report(config, finished)
    header = finished.storage.read_bytes("report/tables/nll_seeds.csv").decode().splitlines()[0]
    assert header == "system,math,mean,MiXSE minus it,standard error"


def test_a_standard_error_may_be_missing(config, finished):
    text = json.dumps(finished.storage.read_json("measure/nll.json"))
    measured = json.loads(text.replace('"standard_error": 0.02', '"standard_error": null'))
    finished.storage.write_json("measure/nll.json", measured)
    write_report(config, finished)
    assert "below the base: 1.700, difference −0.670 below" in Page(read(finished)).text
