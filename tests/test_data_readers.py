from __future__ import annotations

import bz2

import pytest

from apet.data.readers import Row, read_articles, read_csv, read_dialogue, read_tab
from apet.data.wheels import open_wheel
from apet.errors import DataError
from toy_wheels import pin_toy

HEADER = "Category\tText\nd\tstring\nclass\t\n"
COLUMNS = {"members": {"all": "t.tab"}, "text": "Text", "label": "Category"}


@pytest.fixture
def read(monkeypatch, tmp_path):
    def rows(reader, files, /, **arguments):
        pin_toy(monkeypatch, tmp_path, files)
        with open_wheel("toy", tmp_path) as archive:
            return list(reader(archive, **arguments))

    return rows


def test_tab_skips_headers_and_the_empty_line_and_keeps_quotation_marks(read):
    content = HEADER + '\t\na\t"so to speak\nb\ttwo  words \n'
    assert read(read_tab, {"t.tab": content}, **COLUMNS) == [
        Row('"so to speak', "a", None, "t.tab, line 5"),
        Row("two  words", "b", None, "t.tab, line 6"),
    ]


def test_tab_with_quotes_and_official_splits(read):
    tables = {"train.tab": HEADER + 'a\t"one ""big""\nline"\n', "test.tab": HEADER + "b\ttwo\n"}
    members = {"train": "train.tab", "test": "test.tab"}
    rows = read(read_tab, tables, members=members, text="Text", quoted=True)
    assert [(row.text, row.split) for row in rows] == [('one "big"\nline', "train"), ("two", "test")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER + "a\tone\nb\n", "t.tab, line 5: has 1 columns, expected 2"),
        (HEADER + "a\tone\tmore\n", "t.tab, line 4: has 3 columns"),
        ("Category\tTxt\nd\tstring\nclass\t\na\tone\n", "t.tab: unknown column 'Text'. Did you mean 'Txt'"),
        ("", "t.tab: unknown column 'Text'"),
        (HEADER.encode() + b"a\tone\nb\t\xff\xfe\n", "t.tab, after line"),
        (HEADER + "a\t" + "x" * 200_000 + "\n", "field larger than field limit"),
    ],
)
def test_a_malformed_table_is_named_with_its_line(read, content, message):
    with pytest.raises(DataError) as error:
        read(read_tab, {"t.tab": content}, **COLUMNS)
    assert message in str(error.value)


def test_dialogue_joins_adjacent_lines_of_one_group(read):
    content = "S\tWho\tQuote\nd\td\tstring\n\t\t\n1\tAnn\t Hi!\n1\tBob\tHo.\n2\tAnn\tBye.\n"
    rows = read(read_dialogue, {"t.tab": content}, member="t.tab", group="S", speaker="Who", text="Quote")
    assert [row.text for row in rows] == ["Ann: Hi!\nBob: Ho.", "Ann: Bye."]
    assert rows[1].where == "t.tab, line 6"


def test_csv_leaves_out_classes_and_reads_quoted_lines(read):
    content = bz2.compress(b'category,text\nplot,"A, B"\nfresh,"one\ntwo"\nrotten,three\n')
    arguments = {"member": "t.csv.bz2", "text": "text", "label": "category"}
    rows = read(read_csv, {"t.csv.bz2": content}, **arguments, leave_out=["plot"])
    assert [(row.label, row.text) for row in rows] == [("fresh", "one\ntwo"), ("rotten", "three")]
    assert len(read(read_csv, {"t.csv.bz2": content}, **arguments)) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"category,text\n", "is not bzip2 data"),
        (bz2.compress(b"category,text\nfresh,one\n")[:-4], "is cut short"),
        (bz2.compress(b"category,text\nfresh\n"), "line 2: has 1 columns"),
        (bz2.compress(b'category,text\nfresh,"one\n'), "unexpected end of data"),
        (bz2.compress(b"0" * (64 * 2**20 + 1)), "more than the 67,108,864 bytes"),
    ],
)
def test_a_malformed_csv_is_named(read, content, message):
    with pytest.raises(DataError) as error:
        read(read_csv, {"t.csv.bz2": content}, member="t.csv.bz2", text="text", label="category")
    assert message in str(error.value)
    assert "t.csv.bz2" in str(error.value)


def test_articles_take_their_folder_as_label(read):
    members = {"d/sports/2.txt": "£5".encode("cp1252"), "d/sports/1.txt": "£4\n", "d/tech/1.txt": "x", "d/x.py": "no"}
    rows = read(read_articles, members, folder="d")
    assert [(row.label, row.text) for row in rows] == [("sports", "£4"), ("sports", "£5"), ("tech", "x")]
    with pytest.raises(DataError, match=r"nowhere: the archive has no \.txt"):
        read(read_articles, members, folder="nowhere")
