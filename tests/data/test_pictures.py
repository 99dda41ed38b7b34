"""Pictures in folders and zip files, and the preprocessing that turns them into inputs."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lowbit.data import InputSpec, Preprocessing, input_specs, open_data, parse_preprocessing
from lowbit.exceptions import DataError, RecipeError

F4 = np.dtype("float32")
NCHW = (InputSpec("x", F4, ("b", 3, 8, 8)),)
NHWC = (InputSpec("x", F4, ("b", 8, 8, 3)),)
PLAIN = Preprocessing()
DATA = Path(os.environ.get("LOWBIT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def needs(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in LOWBIT_DATA ({DATA})")
    return path


def colors(size: tuple[int, int] = (8, 8), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    return target


@pytest.fixture(params=["folder", "zip"])
def pack(request, tmp_path: Path):
    """Return the folder, or a zip file of it."""
    return (lambda folder: folder) if request.param == "folder" else lambda f: zipped(f, tmp_path / "d.zip")


def only(source, specs=NCHW, preprocessing=PLAIN) -> np.ndarray:
    (feed,) = open_data(source, specs, preprocessing=preprocessing)
    return feed["x"]


def test_pictures_in_order_of_their_names(tmp_path: Path, pack):
    folder = tmp_path / "pictures"
    for i, suffix in enumerate(("png", "bmp", "PNG", "webp", "jpeg")):
        write(folder / f"{i}.{suffix}", np.full((8, 8, 3), 10 * i, np.uint8))
    (folder / ".hidden.png").write_text("no picture")
    (folder / "notes.txt").write_text("no picture")
    data = open_data(pack(folder), NCHW, preprocessing=PLAIN)
    assert data.samples == 5
    assert data.labels is None
    for _ in range(2):
        values = [feed["x"] for feed in data]
        assert all(value.shape == (1, 3, 8, 8) and value.dtype == F4 for value in values)
        assert [round(float(value.mean())) for value in values] == [0, 10, 20, 30, 40]


def test_class_folders_are_labels(tmp_path: Path, pack):
    folder = tmp_path / "pictures"
    for split in ("train", "test"):
        for name in ("dog", "cat", "bird"):
            write(folder / split / name / "0.png", colors())
    packed = pack(folder)
    data = open_data(packed, NCHW, preprocessing=PLAIN)
    np.testing.assert_array_equal(data.labels, [0, 1, 2, 0, 1, 2])
    assert "bird, cat, dog" in data.warnings[0]
    part = open_data(packed / "train", NCHW, preprocessing=PLAIN)
    assert part.samples == 3
    assert len(list(part)) == 3


def test_labels_csv(tmp_path: Path, pack):
    folder = tmp_path / "pictures"
    for name in ("a", "b", "sub/c"):
        write(folder / f"{name}.png", colors())
    (folder / "labels.csv").write_text("file,label,name\nsub/c.png,7,x\na.png,3,y\nb.png,5,z\n", encoding="utf-8-sig")
    packed = pack(folder)
    np.testing.assert_array_equal(open_data(packed, NCHW, preprocessing=PLAIN).labels, [3, 5, 7])
    other = tmp_path / "other.csv"
    other.write_text("file,label\nsub/c.png,cat\na.png,dog\nb.png,cat\n")
    named = open_data(packed, NCHW, preprocessing=PLAIN, labels=other)
    np.testing.assert_array_equal(named.labels, [1, 0, 0])
    assert "cat, dog" in named.warnings[0]
    other.write_text("file,label\nsub/c.png,1\nz.png,1\n")
    with pytest.raises(DataError, match=r"2 pictures have no label \['a.png', 'b.png'\], 1 rows name no picture"):
        open_data(packed, NCHW, preprocessing=PLAIN, labels=other)
    other.write_text("name,class\n")
    with pytest.raises(DataError, match=r"columns \['name', 'class'\].*'file' and 'label'"):
        open_data(packed, NCHW, preprocessing=PLAIN, labels=other)


def test_pictures_beside_and_in_folders_have_no_labels(tmp_path: Path):
    write(tmp_path / "a.png", colors())
    write(tmp_path / "cat" / "b.png", colors())
    data = open_data(tmp_path, NCHW, preprocessing=PLAIN)
    assert data.labels is None
    assert "both beside and in folders" in data.warnings[0]


def test_formula_layout_and_channels(tmp_path: Path):
    pixels = colors()
    write(tmp_path / "a.png", pixels)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    expected = (pixels / 255 - mean) / std
    rgb = Preprocessing(scale=1 / 255, mean=mean, std=std)
    np.testing.assert_allclose(only(tmp_path, preprocessing=rgb)[0], expected.transpose(2, 0, 1), atol=1e-5)
    nhwc = Preprocessing(scale=1 / 255, mean=mean, std=std, layout="NHWC")
    np.testing.assert_allclose(only(tmp_path, NHWC, nhwc)[0], expected, atol=1e-5)
    bgr = Preprocessing(color="BGR", mean=(1, 2, 3))
    np.testing.assert_array_equal(
        only(tmp_path, preprocessing=bgr)[0], (pixels[..., ::-1] - np.float32([1, 2, 3])).transpose(2, 0, 1)
    )
    gray = only(tmp_path, (InputSpec("x", F4, ("b", 1, 8, 8)),), Preprocessing(color="GRAY"))
    np.testing.assert_array_equal(gray[0, 0], np.asarray(Image.fromarray(pixels).convert("L")))
    raw = only(tmp_path, (InputSpec("x", np.dtype("uint8"), ("b", 3, 8, 8)),))
    assert raw.dtype == np.uint8
    np.testing.assert_array_equal(raw[0], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_picture_becomes_rgb(tmp_path: Path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.fromarray(colors()).convert(mode).save(tmp_path / f"a.{suffix}")
    assert only(tmp_path).shape == (1, 3, 8, 8)


def test_pictures_are_turned_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the upright picture is this one turned clockwise
    Image.fromarray(colors((8, 4))).save(tmp_path / "a.png", exif=exif)
    spec = (InputSpec("x", F4, ("b", 4, 8, 3)),)
    upright = only(tmp_path, spec, Preprocessing(layout="NHWC"))
    np.testing.assert_array_equal(upright[0], np.rot90(colors((8, 4)), -1))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(height=st.integers(8, 60), width=st.integers(8, 60), side=st.integers(8, 40))
def test_shorter_side_and_crop_agree_with_torchvision(height, width, side):
    """The rule of torchvision's Resize and CenterCrop, written down again from its documentation."""
    from lowbit.data.pictures import load_picture

    content = _png(colors((height, width)))
    crop = Preprocessing(size=(side, side), crop=(8, 8), interpolation="bicubic", layout="NHWC")
    assert crop.resize == "shorter-side"
    short, long = min(height, width), max(height, width)
    new = (side, int(side * long / short))
    new_height, new_width = new if height <= width else new[::-1]
    resized = Image.fromarray(colors((height, width)))
    if (new_width, new_height) != resized.size:
        resized = resized.resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = round((new_height - 8) / 2.0), round((new_width - 8) / 2.0)
    expected = np.asarray(resized)[top : top + 8, left : left + 8]
    np.testing.assert_array_equal(load_picture(content, crop, "a.png")[0], expected)


def _png(pixels: np.ndarray) -> bytes:
    import io

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "area"])
def test_stretching_to_a_size(tmp_path: Path, interpolation):
    write(tmp_path / "a.png", np.full((30, 11, 3), 77, np.uint8))
    stretch = Preprocessing(size=(8, 8), interpolation=interpolation)
    assert stretch.resize == "stretch"
    np.testing.assert_array_equal(only(tmp_path, preprocessing=stretch), np.full((1, 3, 8, 8), 77, "float32"))


def test_wrong_sizes_and_layouts_say_what_to_do(tmp_path: Path):
    write(tmp_path / "a.png", colors())
    with pytest.raises(DataError, match=r"'.*a.png' is \[1, 8, 8, 3\] float32, but .* use layout=NCHW"):
        only(tmp_path, NCHW, Preprocessing(layout="NHWC"))
    with pytest.raises(DataError, match=r"axis 2 is 4, not 8.*resize or crop"):
        only(tmp_path, NCHW, Preprocessing(crop=(4, 4)))
    with pytest.raises(DataError, match=r"8 x 8 pixels, smaller than the crop 9 x 9.*size=9,resize=shorter-side"):
        only(tmp_path, NCHW, Preprocessing(crop=(9, 9)))
    with pytest.raises(DataError, match=r"wants uint8.*would change its values"):
        only(tmp_path, (InputSpec("x", np.dtype("uint8"), ("b", 3, 8, 8)),), Preprocessing(scale=1 / 255))


def test_pictures_need_a_preprocessing_and_one_input(tmp_path: Path):
    write(tmp_path / "a.png", colors())
    with pytest.raises(DataError, match=r"nothing says how.*'x' \['b', 3, 8, 8\] float32.*declare a preprocessing"):
        open_data(tmp_path, NCHW)
    with pytest.raises(DataError, match=r"pictures, but the model has the inputs \['x', 'z'\]"):
        open_data(tmp_path, (*NCHW, InputSpec("z", F4, (1,))), preprocessing=PLAIN)
    with pytest.raises(RecipeError, match="a preprocessing was given for the data, which are not pictures"):
        open_data(np.zeros((1, 3, 8, 8)), NCHW, preprocessing=PLAIN)
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match="both 1 array files and 1 pictures"):
        open_data(tmp_path, NCHW, preprocessing=PLAIN)


@pytest.mark.parametrize("damage", ["short", "empty", "text"])
def test_damaged_pictures_are_named(tmp_path: Path, pack, damage):
    folder = tmp_path / "pictures"
    write(folder / "a.png", colors())
    write(folder / "b.jpg", colors((64, 64)))
    content = {"short": (folder / "b.jpg").read_bytes()[:700], "empty": b"", "text": b"hello"}[damage]
    (folder / "b.jpg").write_bytes(content)
    data = open_data(pack(folder), NCHW, preprocessing=Preprocessing(size=(8, 8)))
    with pytest.raises(DataError, match=r"b.jpg' cannot be decoded"):
        list(data)


def test_damaged_zip_files_are_named(tmp_path: Path):
    (tmp_path / "a.zip").write_bytes(b"PK no")
    with pytest.raises(DataError, match=r"a.zip' cannot be read"):
        open_data(tmp_path / "a.zip", NCHW, preprocessing=PLAIN)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("notes.txt", "no picture")
    with pytest.raises(DataError, match=r"b.zip' holds no pictures"):
        open_data(tmp_path / "b.zip", NCHW, preprocessing=PLAIN)


def test_preprocessing_from_text_dict_and_yaml(tmp_path: Path):
    text = "size=256,crop=224,mean=127,std=128,layout=nchw,color=rgb"
    expected = Preprocessing(size=(256, 256), crop=(224, 224), mean=(127.0,), std=(128.0,))
    assert parse_preprocessing(text) == expected
    assert Preprocessing.from_dict(expected.to_dict()) == expected
    (tmp_path / "p.yaml").write_text("size: 256\ncrop: [224, 224]\nmean: 127\nstd: 128\n")
    assert Preprocessing.from_yaml(tmp_path / "p.yaml") == expected
    assert parse_preprocessing("size=240x320, scale=1/255, mean=0.485, 0.456,0.406") == Preprocessing(
        size=(240, 320), scale=1 / 255, mean=(0.485, 0.456, 0.406)
    )
    assert parse_preprocessing("size=240,320").size == (240, 320)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sise=3", r"unknown keys \['sise'\].*known are size, resize, crop"),
        ("224", "not a list of key=value"),
        ("size=1,size=2", "gives 'size' twice"),
        ("size=a", "size='a', which is not a number"),
        ("size=1.5", "whole pixels"),
        ("size=0", "height, width"),
        ("size=1,2,3", "height, width"),
        ("scale=1/0", "not a number"),
        ("scale=0", "must be finite and not zero"),
        ("scale=nan", "must be finite"),
        ("std=0", "not zero"),
        ("std=nan", "finite number"),
        ("mean=1,2", "each of the 3 channels"),
        ("mean=1,2,3,color=GRAY", "each of the 1 channels"),
        ("layout=CHWN", "use one of NCHW, NHWC"),
        ("color=HSV", "use one of RGB"),
        ("resize=fit,size=3", "use one of stretch"),
        ("interpolation=best", "use one of nearest"),
        ("resize=stretch", "without a size"),
    ],
)
def test_wrong_preprocessing_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        parse_preprocessing(text)


def test_wrong_yaml_is_refused(tmp_path: Path):
    path = tmp_path / "p.yaml"
    for content, message in (("[1, 2]", "not a mapping"), ("a: [", "cannot be read"), ("size: true", "not a number")):
        path.write_text(content)
        with pytest.raises(RecipeError, match=message):
            Preprocessing.from_yaml(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        Preprocessing.from_yaml(tmp_path / "none.yaml")


def test_real_imagenet_sample_and_model():
    import onnx_ir
    import onnxruntime

    archive, model = needs("imagenet-sample-dev.zip"), needs("models/efficientnet_lite0.onnx")
    specs = input_specs(onnx_ir.load(model))
    data = open_data(archive, specs, preprocessing=parse_preprocessing("crop=224,mean=127,std=128"), limit=40)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    answers = np.concatenate([session.run(None, feed)[0].argmax(-1) for feed in data])
    # 0.89 on all 500 (the data's README); far above what a wrong mean, layout or channel order would give
    assert (answers == data.labels).mean() >= 0.75


def test_real_keyword_samples():
    import onnx_ir

    raw = np.load(needs("kws-mlperf-dev.npz"))
    specs = input_specs(onnx_ir.load(needs("models/kws_dscnn_float.onnx")))
    with pytest.raises(DataError, match=r"\[500, 49, 10\] int8.*array\[..., None\]"):
        open_data(DATA / "kws-mlperf-dev.npz", specs)
    x = ((raw["x"].astype("float32") - 83) * 0.5847029089927673)[..., None]
    data = open_data({"input_1": x, "y": raw["y"]}, specs, batch_size=64)
    np.testing.assert_array_equal(np.concatenate([feed["input_1"] for feed in data]), x)
    np.testing.assert_array_equal(data.labels, raw["y"])


def test_real_street_photographs():
    spec = (InputSpec("input.1", F4, (1, 3, 352, 352)),)
    preprocessing = parse_preprocessing("size=352,scale=1/255,color=BGR")
    data = open_data(needs("street"), spec, preprocessing=preprocessing, batch_size=4)
    feeds = [feed["input.1"] for feed in data]
    assert [feed.shape for feed in feeds] == [(1, 3, 352, 352)] * 5
    assert all(0 <= feed.min() < 0.2 < 0.8 < feed.max() <= 1 for feed in feeds)
    assert "fixes its batch at 1" in data.warnings[0]
