"""KerasTuner's Hyperband with a small network from scratch (Keras would download weights), with torch as backend.

    python scripts/bench/recipes/keras_hyperband.py photos/train --minutes 10 --seed 0 --out run

The network is that of Keras' example of image classification from scratch, with some of its numbers as hyperparameters.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import shared

os.environ["KERAS_BACKEND"] = "torch"

import keras
import keras_tuner as kt
import numpy as np
from keras import layers
from sklearn.model_selection import train_test_split

EPOCHS = 12
SAVING_SECONDS = 5.0


class Deadline(keras.callbacks.Callback):
    """Ends the current training when the time is over, and the search when another training begins."""

    def __init__(self, until: float) -> None:
        super().__init__()
        self.until = until

    def on_train_begin(self, logs: object = None) -> None:
        """End the search if the time is over."""
        if time.monotonic() > self.until:
            raise kt.errors.FatalError("the time is over")

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        """End the training if the time is over."""
        if time.monotonic() > self.until:
            self.model.stop_training = True


def read(folder: Path, side: int) -> np.ndarray:
    """Return the images below a folder of classes."""
    return np.stack(
        [keras.utils.img_to_array(keras.utils.load_img(f, target_size=(side, side))) for f in shared.files(folder)]
    )


def build(hp: kt.HyperParameters, side: int, classes: int) -> keras.Model:
    """Return a network with separable convolutions and shortcuts."""
    inputs = keras.Input((side, side, 3))
    x = layers.RandomFlip("horizontal")(inputs)
    x = layers.RandomZoom(0.1)(x)
    x = layers.Rescaling(1 / 255)(x)
    width = hp.Int("width", 16, 64, step=16)
    x = layers.Conv2D(width, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    for number in range(hp.Int("blocks", 2, 4)):
        width = min(2 * width, 256)
        shortcut = layers.Conv2D(width, 1, strides=2, padding="same")(x)
        for _ in range(2):
            x = layers.Activation("relu")(x) if number else x
            x = layers.BatchNormalization()(layers.SeparableConv2D(width, 3, padding="same")(x))
        x = layers.add([layers.MaxPooling2D(3, strides=2, padding="same")(x), shortcut])
    x = layers.Dropout(hp.Float("dropout", 0.0, 0.5, step=0.1))(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Dense(classes, activation="softmax")(x))
    rate = hp.Float("lr", 1e-4, 1e-2, sampling="log")
    model.compile(keras.optimizers.Adam(rate), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main() -> None:
    """Tune for some minutes, or predict."""
    given = shared.arguments(__doc__)
    if given.predict:
        found = {}
        for path in given.predict:
            model, classes = keras.saving.load_model(path), (path.parent / "classes.txt").read_text().splitlines()
            answers = model.predict(read(given.images, model.input_shape[1]), verbose=0).argmax(1)
            found[str(path)] = [classes[number] for number in answers]
        shared.show(given.images, found)
        return
    until = shared.STARTED + 60 * given.minutes - SAVING_SECONDS
    keras.utils.set_random_seed(given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    names = [file.parent.name for file in shared.files(given.images)]
    classes, labels = np.unique(names, return_inverse=True)
    (given.out / "classes.txt").write_text("\n".join(classes))
    images, side = read(given.images, shared.side(given.images)), shared.side(given.images)
    x, x_val, y, y_val = train_test_split(images, labels, test_size=0.15, stratify=labels, random_state=given.seed)
    tuner = kt.Hyperband(
        lambda hp: build(hp, side, len(classes)),
        objective="val_accuracy",
        max_epochs=EPOCHS,
        seed=given.seed,
        directory=given.out,
        project_name="tuner",
    )
    try:
        tuner.search(x, y, validation_data=(x_val, y_val), verbose=2, callbacks=[Deadline(until)])
    except kt.errors.FatalError as reason:
        print(reason, flush=True)
    tuner.get_best_models()[0].save(given.out / "best.keras")
    trials = tuner.oracle.get_best_trials(999)
    print(f"{side} pixels, trials: {len(trials)}; best {trials[0].score:.4f}", flush=True)


if __name__ == "__main__":
    main()
