"""The report is one self-contained page that shows what a run folder holds, however little that is."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorikeet.base.errors import OutputError
from lorikeet.train.charts import Curve, make_chart, points_of, round_ticks, short, smooth
from lorikeet.train.report import write_report

SUMMARY = {
    "train_loss": 0.0731,
    "eval_loss": 0.5,
    "eval_loss_before": 2.0,
    "tokens": 301233,
    "seconds": 183.4,
    "tokens_per_second": 1642.5,
    "compile_seconds": 21.0,
    "peak_rss_bytes": 3 << 29,
    "trainable_parameters": 4884480,
    "parameters": 134515008,
    "steps": 20,
}


def train_row(step, **changes):
    row = {"kind": "train", "step": step, "loss": 2 / step, "learning_rate": 2e-4, "grad_norm": 1.0, "tokens": 3200}
    row |= {"seconds": 1.2, "tokens_per_second": 2666.0, "rss_bytes": 1 << 30, "peak_rss_bytes": 2 << 30}
    return row | changes


def eval_row(step, loss):
    return {"kind": "eval", "step": step, "loss": loss, "perplexity": 2.0, "token_accuracy": 0.5, "tokens": 90}


class Tags(HTMLParser):
    """Every start tag with its attributes; asserts that tags are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.found, self.open = [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "line", "path", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def report(folder, rows=(), summary=None, samples=(), recipe=None):
    """The page of a run folder with these files; lines given as text are written as they are."""
    folder.mkdir(exist_ok=True)
    for name, lines in (("metrics.jsonl", rows), ("samples.jsonl", samples)):
        if lines:
            (folder / name).write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))
    if summary is not None:
        (folder / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
    if recipe is not None:
        (folder / "recipe.yaml").write_text(recipe)
    path = write_report(folder)
    assert path == folder / "report.html"
    page = path.read_text("utf-8")
    return page, Tags(page).found


def tiles(page):
    return dict(re.findall(r'<dt>(.*?)</dt><dd class="value">(.*?)</dd>', page))


def test_a_whole_run(tmp_path):
    rows = [train_row(step) for step in range(1, 21)] + [eval_row(step, 3 / step) for step in (10, 20)]
    page, tags = report(tmp_path / "my run", rows, SUMMARY, recipe="train: {seed: 0}\n")
    assert page.count("<figure") == 6 and "my run" in page and "train: {seed: 0}" in page
    assert 'class="problems"' not in page
    expected = {"Training loss": "0.0731", "Validation loss": "0.5", "Perplexity": "1.649", "Tokens": "301,233"}
    # a number and its unit stay on one line, in a tile as narrow as a telephone's
    expected |= {"Time": "3\xa0min 3\xa0s", "Peak memory": "1.50\xa0GiB", "Trainable parameters": "4.88\xa0M"}
    assert expected.items() <= tiles(page).items()
    assert "2 before" in page and "7.389 before" in page and "3.63% of 134.52 M" in page
    for tag, attributes in tags:
        if tag == "svg":
            assert attributes["role"] == "img" and "at step 20" in attributes["aria-label"]
    loss = next(a["aria-label"] for tag, a in tags if tag == "svg")
    assert loss.startswith("Loss over steps: each step 2 at step 1, 0.1 at step 20; smoothed 2 at step 1")
    assert loss.endswith("validation 0.3 at step 10, 0.15 at step 20.")


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    page, tags = report(tmp_path / "run", [train_row(1), train_row(2)], SUMMARY)
    for tag, attributes in tags:
        assert tag not in ("link", "img", "iframe", "base") and not {"src", "href"} & set(attributes)
    assert not re.search(r"https?:|url\(|@import", page)


def test_demo_figures(tmp_path):
    page, _ = report(tmp_path / "run", summary={"exact_match_before": 0.01, "exact_match_after": 0.9, "held_out": 300})
    assert tiles(page)["Exact match"] == "90.0%" and "of 300 held out, 1.0% before" in page


def test_text_is_escaped(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'"
    sample = dict.fromkeys(("prompt", "reference", "before", "after"), evil)
    rows = [train_row(1), train_row(2, loss=evil, **{evil: 1})]
    page, tags = report(tmp_path / "<b>run", rows, {evil: evil}, [sample], recipe=evil)
    assert [tag for tag, _ in tags if tag in ("script", "img", "b")] == ["script", "script"]
    assert unescape(page).count(evil) == 7


def test_samples(tmp_path):
    samples = [
        {"prompt": "p1", "reference": "r1", "before": "", "after": "a1", "match_before": False, "match_after": True},
        {"prompt": "p2", "reference": None, "before": "b2", "after": "a2"},
        {"prompt": [{"role": "user"}], "after": "a3", "match_after": False},
    ]
    page, _ = report(tmp_path / "run", samples=samples)
    cards = re.findall(r"<article.*?</article>", page, re.S)
    assert len(cards) == 3
    assert "✓ right" in cards[0] and "✗ wrong" in cards[0] and "(empty)" in cards[0] and "r1" in cards[0]
    assert "right" not in cards[1] and "wrong" not in cards[1] and "Reference" not in cards[1]
    assert "Before" not in cards[2] and '[{"role": "user"}]' in unescape(cards[2])
    assert "Right before training: 0 of 1." in page and "Right after training: 1 of 2." in page


def test_many_samples_are_counted_and_cut(tmp_path):
    page, _ = report(tmp_path / "run", samples=[{"prompt": "p", "after": "a", "match_after": True}] * 80)
    assert page.count("<article") == 50 and "first 50 of 80" in page and "80 of 80" in page


def test_an_empty_folder(tmp_path):
    page, _ = report(tmp_path / "run")
    assert "No step has been recorded yet." in page and "no summary yet" in page
    assert "<figure" not in page and "<details" not in page and not tiles(page)


@pytest.mark.parametrize(
    "rows", [[train_row(1)], [eval_row(0, 2.0)], [{"kind": "train"}], [{"step": 1, "loss": 2}], [train_row(10**400)]]
)
def test_few_rows(tmp_path, rows):
    report(tmp_path / "run", rows)


def test_a_run_without_summary_shows_its_last_row(tmp_path):
    page, _ = report(tmp_path / "run", [train_row(1), train_row(2)])
    found = tiles(page)
    assert found["Training loss"] == "1" and found["Tokens"] == "6,400" and found["Time"] == "2.4\xa0s"
    assert found["Peak memory"] == "2.00\xa0GiB" and "no summary yet" in page


def test_a_diverged_run(tmp_path):
    rows = [train_row(1), train_row(2, loss=math.nan, grad_norm=math.inf), train_row(3), train_row(4)]
    page, tags = report(tmp_path / "run", rows, SUMMARY | {"eval_loss": math.nan})
    assert "1 of 4 training rows have a loss that is not a finite number." in page
    raw = next(a["d"] for tag, a in tags if tag == "path" and a["class"] == "curve raw")
    assert raw.count("M") == 2 and raw.count("L") == 1  # the curve has a gap
    assert "Validation loss" not in tiles(page)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', page, re.I)


def test_torn_files(tmp_path):
    page, _ = report(tmp_path / "run", [train_row(1), '{"kind": "train", "st', "[]"], '{"train_lo', [" "], "a: \x00")
    assert "metrics.jsonl: 2 lines could not be read." in page and "summary.json could not be read." in page


def test_no_folder(tmp_path):
    with pytest.raises(OutputError, match="there is no run folder"):
        write_report(tmp_path / "missing")


def test_long_runs_stay_small(tmp_path):
    page, _ = report(tmp_path / "run", [train_row(step) for step in range(1, 20_001)], SUMMARY)
    assert len(page) < 400_000 and "at step 20000" in page


def test_smoothing_is_a_mean_without_bias():
    assert smooth([(1, 5.0), (2, None), (3, 5.0)]) == [(1, 5.0), (2, None), (3, 5.0)]
    rough = [(step, float(step % 2)) for step in range(400)]
    assert all(0.3 < y < 0.7 for _, y in smooth(rough)[40:])


def test_points_take_rows_that_have_step_and_value():
    rows = [{"step": 1, "x": 4}, {"step": 2}, {"x": 3}, {"step": 3, "x": math.inf}, {"step": 4, "x": "a"}]
    assert points_of(rows, "x", 2.0) == [(1, 2.0), (3, None), (4, None)]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2e-4, "2e-4"), (2.5e-12, "2.5e-12"), (0.05, "0.05"), (12.345, "12.35"), (12345, "12,345")]
    + [(4884480, "4.88 M"), (1.5e11, "1.5e+11"), (-3.0, "-3")],
)
def test_short_numbers(value, text):
    assert short(value) == text


finite = st.floats(-1e300, 1e300)


@given(finite, finite)
def test_ticks_enclose_the_values(a, b):
    low, high = min(a, b), max(a, b)
    ticks = round_ticks(low, high)
    slack = max(1e-6 * max(abs(low), abs(high)), 1e-30)
    assert 2 <= len(ticks) <= 8 and ticks == sorted(set(ticks))
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack


@given(st.lists(st.tuples(st.integers(0, 10**6), st.none() | finite), max_size=30))
def test_curves_stay_inside_the_drawing(points):
    chart = make_chart("Any", [Curve("any", sorted(points, key=lambda p: p[0]))], from_zero=False)
    assert (chart is None) == all(y is None for _, y in points)
    for x, y, *_ in chart.readout[0]["points"] if chart else ():
        assert 54 <= x <= 388 and 11.9 <= y <= 186.1


STATUS = {"state": "running", "steps": 40, "starts": [{"step": 0}, {"step": 5}, {"step": 5}, {"step": 12}]}


def test_where_a_run_went_on(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "status.json").write_text(
        json.dumps(STATUS | {"held_bytes": {"frozen": 269 << 20, "optimizer": 1 << 21}})
    )
    page, _ = report(folder, [train_row(step) for step in range(1, 21)], SUMMARY)
    loss = re.search(r"<figure.*?</figure>", page, re.S)[0]
    assert re.findall(r"went on from step (\d+)", loss) == ["5", "12"]
    places = [float(x) for x in re.findall(r'<line x1="([\d.]+)"', loss)]
    assert places == [pytest.approx(54 + (step - 1) / 19 * 334, abs=0.1) for step in (5, 12)]
    assert "frozen weights</th><td>0.26 GiB" in page and "2.0 MiB" in page


def test_a_run_that_never_stopped_has_no_marks(tmp_path):
    page, _ = report(tmp_path / "run", [train_row(1), train_row(2)], SUMMARY)
    assert "went on" not in page and 'class="mark"' not in page


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({"state": "running"}, "was killed"),
        ({"state": "stopped", "why": "asked to stop by SIGTERM"}, "stopped: asked to stop by SIGTERM"),
        ({"state": "failed", "why": "TrainingError: the loss is nan"}, "failed: TrainingError: the loss is nan"),
        ({"state": ["?"], "starts": "?", "held_bytes": [1]}, "stopped before its end"),
    ],
)
def test_how_a_run_without_a_summary_ended(tmp_path, status, said):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "status.json").write_text(json.dumps(status))
    page, _ = report(folder, [train_row(1)])
    assert said in unescape(page)


def test_a_limit_is_named(tmp_path):
    page, _ = report(tmp_path / "run", [train_row(1)], SUMMARY | {"ended_by": "limits.time: 2h", "go_on": "again"})
    assert "A limit ended the run: limits.time: 2h. To go on: again" in page and "no summary" not in page


def test_memory_by_kind(tmp_path):
    rows = [train_row(step, rss_file_bytes=1 << 29, swap_bytes=0, device_bytes=3 << 30) for step in (1, 2)]
    page, _ = report(tmp_path / "run", rows, SUMMARY)
    figure = next(one for one in re.findall(r"<figure.*?</figure>", page, re.S) if "Memory by kind" in one)
    assert re.findall(r'class="key \w+">(.*?)<', figure) == [
        "resident",
        "of it mapped files",
        "on the device",
        "peak so far",
    ]
    assert "on the device 3 at step 1" in figure


def test_shares_of_the_sources(tmp_path):
    sources = [
        {"source": "a.json", "weight": 3, "passes": 2.0, "counts": {"rows": 9, "examples": 9, "tokens": 300}},
        {"source": "b.json", "weight": 1, "passes": 0.5, "counts": {"rows": 9, "examples": 9, "tokens": 400}},
        {"source": "c.json", "counts": {}},
    ]
    page, _ = report(tmp_path / "run", [train_row(1)], SUMMARY | {"data": {"sources": sources}})
    assert re.findall(r"</span>([\d.]+) %", page) == ["75.0", "25.0"] and "width: 75.0%" in page


def test_samples_at_checkpoints(tmp_path):
    sample = {"prompt": "p", "before": "b", "after": "a", "at": {"20": "at twenty", "3": "at three", "x": "?"}}
    page, _ = report(tmp_path / "run", samples=[sample])
    labels = re.findall(r'<p class="label">(?!Prompt)(.*?)<', page)
    assert labels == ["Before", "At step 3", "At step 20", "After"] and "at twenty" in page


def test_certificates(tmp_path):
    folder, beside = tmp_path / "run", tmp_path / "run-merged"
    (folder / "adapter").mkdir(parents=True)
    beside.mkdir()
    prints = {"tokenizer_fingerprint": "t", "template_fingerprint": "u", "base_fingerprint": "b", "data": "d"}
    (folder / "adapter" / "lorikeet.json").write_text(json.dumps(prints))
    made = {
        folder / "invariance_certificate.json": {"passed": False, "rows": [1, 2], "broken": ["padding"]},
        beside / "certificate.json": {"passed": True, "trained": {"path": str(folder)}, "merged": {}}
        | {"measured": {"mean_kl": 1.25e-5, "same": True}, "written": "2026-01-02T03:04:05Z"},
        tmp_path / "template_certificate.json": {"passed": True, "template": "jinja", "counts": {"exact": 41}}
        | {"tokenizer_fingerprint": "t", "template_fingerprint": "u"},
        tmp_path / "other_certificate.json": {"passed": True, "trained": {"path": str(tmp_path / "another")}},
        tmp_path / "strange_certificate.json": {"passed": True, "tokenizer_fingerprint": "t"},  # too little to go by
        folder / "half_certificate.json": "{",
    }
    for path, value in made.items():
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    page, _ = report(folder, [train_row(1)], SUMMARY)
    cards = re.findall(r'aria-label="Certificate of (\w+)"(.*?)</section>', page, re.S)
    assert [name for name, _ in cards] == ["template", "invariance", "merge"]
    assert "not passed" in cards[1][1] and "padding" in cards[1][1] and "exact</th><td>41" in cards[0][1]
    assert "1.25e-05" in cards[2][1] and "../run-merged/certificate.json, 2026-01-02" in cards[2][1]
