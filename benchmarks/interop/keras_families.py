"""Run where TensorFlow is: saves every family as Keras and TFLite files, with inputs and what each answers.

    python keras_families.py FOLDER

writes `NAME.keras`, `NAME.tflite` (float) and `NAME.npz` (`x`, `keras`, `tflite`; the last only where TFLite takes it)
for every family that Keras has a layer for, NAME being its number in `families.py`. Imports nothing of lowbit.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

layers = keras.layers


def _picture(*steps: Any) -> Any:
    return keras.Sequential([keras.Input((16, 16, 3)), *steps, layers.GlobalAveragePooling2D(), layers.Dense(5)])


def _residual() -> Any:
    given = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(given)
    x = layers.ReLU()(layers.Add()([x, layers.Conv2D(8, 3, padding="same")(x)]))
    return keras.Model(given, layers.Dense(5)(layers.GlobalAveragePooling2D()(layers.MaxPooling2D()(x))))


def _gated() -> Any:
    given = keras.Input((16, 16, 3))
    x = layers.Activation("hard_swish")(layers.Conv2D(8, 3, padding="same")(given))
    gate = layers.Conv2D(4, 1, activation="relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return keras.Model(given, layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid")(gate)]))


def _upsampled() -> Any:
    given = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(given)
    wide = layers.UpSampling2D()(layers.Conv2D(8, 3, strides=2, padding="same", activation="relu")(x))
    return keras.Model(given, layers.Conv2D(4, 1)(layers.Concatenate()([x, wide])))


def _attention() -> Any:
    given = keras.Input((6, 16))
    return keras.Model(given, layers.MultiHeadAttention(2, 8)(given, given))


def _sequence(*steps: Any, shape: tuple[int, ...]) -> Any:
    return keras.Sequential([keras.Input(shape), *steps])


def _recurrent(cells: Any) -> Any:
    # With a fixed batch: TFLite takes recurrent layers no other way.
    return keras.Sequential([keras.Input(batch_shape=(1, 8, 16)), cells, layers.Dense(5)])


FAMILIES = {
    0: lambda: _picture(
        layers.Conv2D(8, 3, use_bias=False), layers.BatchNormalization(), layers.ReLU(), layers.Conv2D(8, 3, 2)
    ),
    1: lambda: _picture(
        layers.Conv2D(8, 3),
        layers.ReLU(6.0),
        layers.DepthwiseConv2D(3),
        layers.ReLU(6.0),
        layers.Conv2D(8, 1, groups=2),
    ),
    2: lambda: _sequence(
        layers.Conv1D(8, 5, 2, activation="relu"), layers.Conv1D(8, 3), layers.Flatten(), layers.Dense(5), shape=(32, 4)
    ),
    3: lambda: _sequence(
        layers.Conv2D(8, 3, 2, "same", activation="relu"), layers.Conv2DTranspose(4, 2, 2), shape=(16, 16, 3)
    ),
    4: _residual,
    5: _gated,
    6: _upsampled,
    7: lambda: _sequence(
        layers.Dense(32, activation="relu"), layers.Dense(32, activation="relu"), layers.Dense(5), shape=(24,)
    ),
    8: _attention,
    9: lambda: _sequence(
        layers.Dense(32, activation="gelu"), layers.LayerNormalization(), layers.Dense(16), shape=(6, 16)
    ),
    10: lambda: _sequence(layers.Embedding(20, 16), layers.GlobalAveragePooling1D(), layers.Dense(5), shape=(12,)),
    11: lambda: _recurrent(layers.LSTM(32)),
    12: lambda: _recurrent(layers.GRU(32)),
}


def save(number: int, folder: Path) -> None:
    """Write the files of one family."""
    keras.utils.set_random_seed(number)
    model = FAMILIES[number]()
    generator = np.random.default_rng(number)
    shape = (4, *model.inputs[0].shape[1:])
    x = generator.normal(size=shape).astype(np.float32)
    if number == 10:
        x = generator.integers(0, 20, size=shape).astype(np.float32)
    arrays = {"x": x, "keras": model.predict(x, batch_size=1, verbose=0)}
    model.save(folder / f"{number}.keras")
    try:
        data = tf.lite.TFLiteConverter.from_keras_model(model).convert()
    except Exception as error:  # noqa: BLE001 - then there is no such file to bring in
        print(f"{number}: TFLite does not take it: {type(error).__name__}")
    else:
        (folder / f"{number}.tflite").write_bytes(data)
        interpreter = tf.lite.Interpreter(model_content=data)
        interpreter.allocate_tensors()
        given, wanted = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        answers = []
        for sample in x:
            interpreter.set_tensor(given["index"], sample[None].astype(given["dtype"]))
            interpreter.invoke()
            answers.append(interpreter.get_tensor(wanted["index"]))
        arrays["tflite"] = np.concatenate(answers)
    np.savez(folder / f"{number}.npz", **arrays)


if __name__ == "__main__":
    for each in FAMILIES:
        save(each, Path(sys.argv[1]))
