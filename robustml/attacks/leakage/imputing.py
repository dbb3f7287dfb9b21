"""Learners that fill in an attribute: ours, and the toolbox's attack with the same kind of learner."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from .asking import Array

__all__ = ["LEARNERS", "Learner", "art_guesses", "fitted"]

Learner = Literal["logistic", "forest"]

LEARNERS = ("logistic", "forest")
_TREES = 100
_ART = {"logistic": "lr", "forest": "rf"}


def fitted(
    learner: Learner, features: Array, y: Array, classes: int, codes: Array, seed: int
) -> Callable[[Array, Array], Array]:
    """Learn an attribute from features and the label.

    Args:
        learner: "logistic" or "forest".
        features: What it is learned from, float64 (n, d).
        y: Labels (n,), of so many `classes`, which are learned from as well.
        codes: The number of the attribute's value (n,).
        seed: Of the forest.

    Returns:
        A function of features and labels that gives the probability of each value: (n, values).
    """
    linear, ensemble = (importlib.import_module(f"sklearn.{name}") for name in ("linear_model", "ensemble"))
    scaler = importlib.import_module("sklearn.preprocessing").StandardScaler()
    model: Any = (
        linear.LogisticRegression(max_iter=2000)
        if learner == "logistic"
        else ensemble.RandomForestClassifier(_TREES, random_state=seed % 2**32)
    )
    eye, width = np.eye(classes), int(codes.max()) + 1
    model.fit(scaler.fit_transform(np.hstack([features, eye[y]])), codes)

    def guess(features: Array, y: Array) -> Array:
        found = np.zeros((len(y), width))
        found[:, model.classes_] = model.predict_proba(scaler.transform(np.hstack([features, eye[y]])))
        return found

    return guess


def art_guesses(
    learner: Learner,
    tables: list[Array],
    said: list[Array],
    truths: list[Array],
    codes: Array,
    classes: int,
    seed: int,
) -> list[Array]:
    """What `AttributeInferenceBlackBox` guesses: codes int64 (n,) for each table but the first.

    Args:
        learner: Its attack model.
        tables: Features without the attribute; it learns from the first table.
        said: The labels that the model predicts for each of them.
        truths: Their true labels.
        codes: The attribute's values of the first table.
        classes: The number of answers of the model.
        seed: Of its random numbers.
    """
    inference = importlib.import_module("art.attacks.inference.attribute_inference")
    estimators = importlib.import_module("art.estimators.classification")
    # The toolbox asks the model about what it learns from; the answers are here already, and the attribute
    # that it sees is a code, of which the model knows nothing.
    table = np.hstack([codes[:, None].astype(np.float64), tables[0]]).astype(np.float32)
    answers = np.eye(classes, dtype=np.float32)[said[0]]
    place = 0

    def replay(batch: Array) -> Array:
        nonlocal place
        place += len(batch)
        return answers[place - len(batch) : place]

    estimator = estimators.BlackBoxClassifier(replay, (table.shape[1],), classes)
    attack = inference.AttributeInferenceBlackBox(
        estimator, attack_model_type=_ART[learner], attack_feature=0
    )
    attack.attack_model.set_params(random_state=seed % 2**32)  # the global one otherwise
    attack.fit(table, truths[0])
    found = [
        attack.infer(rows.astype(np.float32), truth, pred=answer[:, None].astype(np.float32))
        for rows, answer, truth in zip(tables[1:], said[1:], truths[1:], strict=True)
    ]
    return [np.rint(guesses).astype(np.int64) for guesses in found]
