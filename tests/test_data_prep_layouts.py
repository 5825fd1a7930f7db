"""Layouts: trees made as each data set publishes itself give its labels, splits and groups."""

import json

import pytest

from data_prep.listing.sources import LAYOUT_NAMES, list_entries
from vjepa.errors import UserError

pytestmark = pytest.mark.fast


@pytest.fixture
def tree(tmp_path):
    """tree({"a/b.txt": "text"}) makes the files under tmp_path/v and returns that folder."""

    def make(files):
        for name, text in files.items():
            path = tmp_path / "v" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if isinstance(text, str) else json.dumps(text))
        return tmp_path / "v"

    return make


def columns(folder, layout="auto"):
    """Columns by name, without those that have no value; and the notes."""
    listing = list_entries([str(folder)], layout)
    found = {
        entry.name: {name: value for name, value in entry.columns.items() if value is not None}
        for entry in listing.entries
    }
    return found, "\n".join(listing.notes)


KINETICS = {
    "annotations/train.csv": "label,youtube_id,time_start,time_end,split\n"
    '"riding a bike",-abc_1,3,13,train\nyoga,zz,0,10,train\n',
    "annotations/validate.csv": "label,youtube_id,time_start,time_end,split\nyoga,-abc_1,20,30,validate\n",
    "annotations/test.csv": "youtube_id,time_start,time_end,split\nttt,1,11,test\n",
    "train/-abc_1_000003_000013.mp4": "x",
    "val/yoga/-abc_1_000020_000030.mkv": "x",
    "test/ttt_000001_000011.mp4": "x",
    "train/other.mp4": "x",
}
SSV2 = {
    "labels/labels.json": {"Putting something on something": "7", "Pushing something": "3"},
    "labels/train.json": [
        {
            "id": "1",
            "label": "putting a cup on a table",
            "template": "Putting [something] on [something]",
            "placeholders": [],
        }
    ],
    "labels/validation.json": [
        {"id": "2", "label": "pushing a cup", "template": "Pushing [something]", "placeholders": []},
        {"id": "99", "template": "Pushing something"},
    ],
    "labels/test.json": [{"id": "3"}],
    "labels/test-answers.csv": "3;Pushing something\n",
    "20bn-something-something-v2/1.webm": "x",
    "20bn-something-something-v2/2.webm": "x",
    "20bn-something-something-v2/3.webm": "x",
    "20bn-something-something-v2/4.webm": "x",
}
UCF101 = {
    "ucfTrainTestlist/classInd.txt": "1 Archery\r\n2 HandstandPushups\r\n",
    "ucfTrainTestlist/trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\n"
    "HandstandPushups/v_HandStandPushups_g01_c02.avi 2\n",
    "ucfTrainTestlist/testlist01.txt": "Archery/v_Archery_g01_c01.avi\n",
    "ucfTrainTestlist/trainlist02.txt": "Archery/v_Archery_g01_c01.avi 1\n",
    "ucfTrainTestlist/testlist02.txt": "Archery/v_Archery_g08_c01.avi\n",
    "ucfTrainTestlist/testlist03.txt": "Archery/v_Archery_g08_c01.avi\n",
    "UCF-101/Archery/v_Archery_g08_c01.avi": "x",
    "UCF-101/Archery/v_Archery_g01_c01.avi": "x",
    "UCF-101/HandstandPushups/v_HandStandPushups_g01_c02.avi": "x",
}
HMDB51 = {
    "testTrainMulti_7030_splits/brush_hair_test_split1.txt": "April_09_brush_hair_u_nm_0.avi 1 \n"
    "B(1)_#x_brush_hair_h_0.avi 2 \nC_brush_hair_h_0.avi 0 \n",
    "testTrainMulti_7030_splits/brush_hair_test_split2.txt": "April_09_brush_hair_u_nm_0.avi 2 \n",
    "testTrainMulti_7030_splits/wave_test_split1.txt": "C_brush_hair_h_0.avi 1 \n",
    "brush_hair/April_09_brush_hair_u_nm_0.avi": "x",
    "brush_hair/B(1)_#x_brush_hair_h_0.avi": "x",
    "brush_hair/C_brush_hair_h_0.avi": "x",
    "wave/C_brush_hair_h_0.avi": "x",
}
DIVING48 = {
    "Diving48_V2_train.json": [{"vid_name": "a_b_00010", "start_frame": 0, "end_frame": 9, "label": 1}],
    "Diving48_V2_test.json": [{"vid_name": "a_b_00011", "label": 0}],
    "Diving48_vocab.json": [["Back", "15som", "05Twis", "FREE"], ["Forward", "25som", "NoTwis", "PIKE"]],
    "rgb/a_b_00010.mp4": "x",
    "rgb/a_b_00011.mp4": "x",
}
IMAGENET = {
    "LOC_synset_mapping.txt": "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n",
    "LOC_val_solution.csv": "ImageId,PredictionString\nILSVRC2012_val_00000001,n01443537 85 1 499 "
    "272\nILSVRC2012_val_00000002,n01440764 1 1 2 2\n",
    "ILSVRC/Data/CLS-LOC/train/n01440764/n01440764_10026.JPEG": "x",
    "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000001.JPEG": "x",
    "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG": "x",
    "ILSVRC/Annotations/CLS-LOC/train/n01440764/n01440764_10026.xml": "x",
}
PUBLISHED = {
    "kinetics": KINETICS,
    "ssv2": SSV2,
    "ucf101": UCF101,
    "hmdb51": HMDB51,
    "diving48": DIVING48,
    "imagenet": IMAGENET,
}


def test_kinetics(tree):
    found, notes = columns(tree(KINETICS), "kinetics")
    assert found == {
        "train/-abc_1_000003_000013.mp4": {"label": "riding a bike", "split": "train", "group": "-abc_1"},
        "val/yoga/-abc_1_000020_000030.mkv": {"label": "yoga", "split": "val", "group": "-abc_1"},
        "test/ttt_000001_000011.mp4": {"split": "test", "group": "ttt"},
        "train/other.mp4": {},
    }
    assert (
        "files without an annotation: 1 (train/other.mp4)" in notes
        and "annotations without a file: 1 (zz_000000_000010)" in notes
    )


def test_kinetics_without_the_column_split(tree):
    found, _ = columns(
        tree(
            {"kinetics700_val.csv": "label,youtube_id,time_start,time_end\nyoga,a,0,10\n", "a_000000_000010.mp4": "x"}
        ),
        "kinetics",
    )
    assert found["a_000000_000010.mp4"] == {"label": "yoga", "split": "val", "group": "a"}


def test_ssv2(tree):
    found, notes = columns(tree(SSV2), "ssv2")
    assert list(found.values()) == [
        {"label": "Putting something on something", "split": "train", "class_id": "7"},
        {"label": "Pushing something", "split": "val", "class_id": "3"},
        {"label": "Pushing something", "split": "test", "class_id": "3"},
        {},
    ]
    assert "files without an annotation: 1" in notes and "annotations without a file: 1 (99)" in notes


def test_ssv2_by_its_older_names(tree):
    older = {name.replace("labels/", "something-something-v2-"): text for name, text in SSV2.items()}
    found, notes = columns(tree(older))
    assert found["20bn-something-something-v2/1.webm"]["class_id"] == "7" and "read as layout ssv2" in notes


def test_ucf101(tree):
    found, _ = columns(tree(UCF101), "ucf101")
    assert found == {
        "UCF-101/Archery/v_Archery_g01_c01.avi": {"label": "Archery", "class_id": "1",
        "group": "Archery_g01", "split": "test", "split_02": "train"},
        "UCF-101/Archery/v_Archery_g08_c01.avi": {
            "label": "Archery", "class_id": "1", "group": "Archery_g08",
            "split": "train", "split_02": "test", "split_03": "test",
        },
        "UCF-101/HandstandPushups/v_HandStandPushups_g01_c02.avi": {
            "label": "HandstandPushups", "class_id": "2", "group": "HandStandPushups_g01", "split": "train",
        },
    }  # fmt: skip


def test_hmdb51(tree):
    found, notes = columns(tree(HMDB51), "hmdb51")
    assert found == {
        "brush_hair/April_09_brush_hair_u_nm_0.avi": {
            "label": "brush_hair",
            "group": "April_09",
            "split": "train",
            "split_02": "test",
        },
        "brush_hair/B(1)_#x_brush_hair_h_0.avi": {"label": "brush_hair", "group": "B(1)_#x", "split": "test"},
        "brush_hair/C_brush_hair_h_0.avi": {"label": "brush_hair", "group": "C", "split": "unused"},
        "wave/C_brush_hair_h_0.avi": {"label": "wave", "split": "train"},
    }
    assert "without" not in notes


def test_diving48(tree):
    found, _ = columns(tree(DIVING48), "diving48")
    assert found["rgb/a_b_00010.mp4"] == {
        "label": "Forward 25som NoTwis PIKE",
        "class_id": "1",
        "split": "train",
        "group": "a_b",
    }
    assert found["rgb/a_b_00011.mp4"] == {
        "label": "Back 15som 05Twis FREE",
        "class_id": "0",
        "split": "test",
        "group": "a_b",
    }


def test_diving48_without_its_vocabulary(tree):
    found, _ = columns(tree({name: text for name, text in DIVING48.items() if "vocab" not in name}), "diving48")
    assert found["rgb/a_b_00010.mp4"]["label"] == "1"


def test_imagenet(tree):
    found, notes = columns(tree(IMAGENET), "imagenet")
    data = "ILSVRC/Data/CLS-LOC"
    assert found == {
        f"{data}/train/n01440764/n01440764_10026.JPEG": {"label": "n01440764", "split": "train",
        "class_name": "tench, Tinca tinca", "class_id": "0"},
        f"{data}/val/ILSVRC2012_val_00000001.JPEG": {
            "label": "n01443537", "split": "val", "class_name": "goldfish, Carassius auratus", "class_id": "1",
        },
        f"{data}/test/ILSVRC2012_test_00000001.JPEG": {},
    }  # fmt: skip
    assert (
        "files without an annotation: 1" in notes and "annotations without a file: 1 (ILSVRC2012_val_00000002)" in notes
    )


def test_imagenet_by_folders_alone_and_as_two_sources(tree):
    folder = tree({"train/n01440764/a.JPEG": "x", "val/n01440764/b.JPEG": "x"})
    listing = list_entries([f"{folder}/train", f"{folder}/val"], "imagenet")
    assert [entry.columns for entry in listing.entries] == [
        {"label": "n01440764", "split": "train"},
        {"label": "n01440764", "split": "val"},
    ]


def test_imagefolder(tree):
    folder = tree({"train/run/a.mp4": "x", "Validation/jump/deep/b.mp4": "x", "c.mp4": "x", "test/d.mp4": "x"})
    found, notes = columns(folder, "imagefolder")
    assert found == {
        "Validation/jump/deep/b.mp4": {"label": "deep", "split": "val"}, "c.mp4": {}, "test/d.mp4": {"split": "test"},
        "train/run/a.mp4": {"label": "run", "split": "train"},
    }  # fmt: skip
    assert "files without an annotation: 2 (c.mp4, test/d.mp4)" in notes
    assert columns(folder / "train", "imagefolder")[0] == {"run/a.mp4": {"label": "run", "split": "train"}}
    assert columns(f"{folder}/train/*/*.mp4", "imagefolder")[0] == {"run/a.mp4": {"label": "run", "split": "train"}}
    with pytest.raises(UserError, match="found no class folder"):
        columns(folder / "test", "imagefolder")


def test_auto_takes_no_label_from_folders(tree):
    folder = tree(
        {"train/run/a.mp4": "x", "train/n01440764/b.JPEG": "x", "train.csv": "id,name\n1,2\n", "labels/train.json": "{"}
    )
    found, notes = columns(folder)
    assert all(of_file == {} for of_file in found.values()) and "layout" not in notes
    assert columns(folder, "flat")[0] == found


@pytest.mark.parametrize("layout", PUBLISHED)
def test_auto_knows_published_annotations_and_labels_turn_it_off(tree, tmp_path, layout):
    folder = tree(PUBLISHED[layout])
    named, by_sign = columns(folder, layout), columns(folder)
    assert by_sign[0] == named[0] and f"read as layout {layout}" in by_sign[1]
    name = next(iter(named[0]))
    (tmp_path / "l.csv").write_text(f"file,label\n{name},mine\n")
    for given, kept in (("auto", {}), (layout, named[0][name])):
        listing = list_entries([str(folder)], given, str(tmp_path / "l.csv"))
        (entry,) = [entry for entry in listing.entries if entry.name == name]
        assert {key: value for key, value in entry.columns.items() if value is not None} == kept | {"label": "mine"}


@pytest.mark.parametrize("layout", PUBLISHED)
def test_without_its_annotations_or_files_a_layout_is_an_error(tree, layout):
    folder = tree({"a/b.mp4": "x"})
    with pytest.raises(UserError, match=rf"layout {layout} found no .*; give the folder"):
        columns(folder, layout)
    with pytest.raises(UserError, match=f"layout {layout} found no"):
        columns(f"{folder}/a/*.mp4", layout)
    tree({name: text for name, text in PUBLISHED[layout].items() if text != "x"})
    with pytest.raises(UserError, match=r"no annotation is about a file in it|found no") as caught:
        columns(folder, layout)
    assert str(caught.value).isprintable()
    found, _ = columns(folder)  # auto goes on without
    assert found == {"a/b.mp4": {}}


@pytest.mark.parametrize(
    ("layout", "name", "text", "message"),
    [
        (
            "kinetics",
            "annotations/train.csv",
            "label,youtube_id,time_start,time_end\na,b,x,3\n",
            "time_start and time_end of b",
        ),
        ("kinetics", "annotations/train.csv", "label,youtube_id,time_start,time_end\na,b,3\n", "a line of 3 cells"),
        ("ssv2", "labels/train.json", "[", "is not JSON"),
        ("ssv2", "labels/train.json", "[3]", "not a list of objects with 'id'"),
        ("ssv2", "labels/labels.json", "[3]", "holds no JSON object"),
        (
            "ssv2",
            "labels/train.json",
            '[{"id": "1", "template": "Unheard of"}]',
            "'Unheard of' of 1 is not in labels.json",
        ),
        ("hmdb51", "testTrainMulti_7030_splits/brush_hair_test_split1.txt", "a.avi 5\n", "does not end in 0, 1 or 2"),
        (
            "diving48",
            "Diving48_V2_train.json",
            '[{"vid_name": "a", "label": 2}]',
            "label 2 of a is no number of a dive",
        ),
        ("diving48", "Diving48_V2_train.json", '[{"vid_name": "a"}]', "label None"),
        ("diving48", "Diving48_vocab.json", "{}", "holds no JSON list"),
    ],
)
def test_annotations_that_are_not_as_published(tree, layout, name, text, message):
    folder = tree(PUBLISHED[layout] | {name: text})
    with pytest.raises(UserError, match=message) as caught:
        columns(folder, layout)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    columns(folder)  # auto goes on without


def test_layouts_read_from_an_address(tree):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.put(str(tree(UCF101)), "/ucf", recursive=True)
    remote = list_entries(["memory://ucf"], "ucf101")
    assert [entry.columns for entry in remote.entries] == [
        entry.columns for entry in list_entries([str(tree({}))], "ucf101").entries
    ]
    files.store.clear()


def test_videofolder(tree):
    folder = tree(
        {
            "train/metadata.csv": 'file_name,label,caption\na.mp4,run,"one, two"\ndeep/./b.mp4,jump,\n',
            "validation/metadata.jsonl": '{"file_name": "c.mp4", "label": 3, "at": {"x": 1}, "split": "mine"}\n',
            "train/a.mp4": "x",
            "train/deep/b.mp4": "x",
            "train/d.mp4": "x",
            "validation/c.mp4": "x",
        }
    )
    found, notes = columns(folder, "auto")
    assert found == {
        "train/a.mp4": {"label": "run", "caption": "one, two", "split": "train"},
        "train/deep/b.mp4": {"label": "jump", "split": "train"},
        "train/d.mp4": {"split": "train"},
        "validation/c.mp4": {"label": "3", "at": '{"x": 1}', "split": "mine"},
    }
    assert "read as layout videofolder" in notes and "files without an annotation: 1 (train/d.mp4)" in notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,label\na.mp4,x\na.mp4,y\n", "line 3 names a.mp4 a second time, or a part of it; give this table"),
        ("file_name,start_s,end_s\na.mp4,0,1\n", "line 2 names a.mp4 a second time, or a part of it"),
        ("file_name,label\nz.mp4,x\n", "no annotation is about a file in it: files a.mp4; annotations z.mp4"),
    ],
)
def test_a_videofolder_that_cannot_be_used(tree, text, message):
    with pytest.raises(UserError, match=message):
        columns(tree({"metadata.csv": text, "a.mp4": "x"}), "videofolder")


def test_names_of_layouts():
    assert LAYOUT_NAMES == (
        "auto",
        "flat",
        "imagefolder",
        "kinetics",
        "ssv2",
        "ucf101",
        "hmdb51",
        "diving48",
        "imagenet",
        "videofolder",
        "lerobot",
        "droid",
    )
