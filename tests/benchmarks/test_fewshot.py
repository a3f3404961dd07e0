# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import fewshot
import numpy as np


def test_labels_are_of_every_class_and_of_the_seed():
    classes = np.array([0] * 30 + [2] * 3)
    chosen = fewshot.draw(classes, 5, seed=0)
    assert np.bincount(classes[chosen]).tolist() == [5, 0, 3]
    assert np.array_equal(chosen, fewshot.draw(classes, 5, seed=0))
    assert not np.array_equal(chosen, fewshot.draw(classes, 5, seed=1))


def test_scores_are_averaged_over_the_classes_that_occur():
    truth, answer = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    found = fewshot.scores(truth, answer)
    assert found['accuracy'] == 0.75
    assert np.isclose(found['mean_iou'], (0.5 + 1) / 2)
    assert np.isclose(found['macro_f1'], (2 / 3 + 1) / 2)


def test_every_classifier_takes_missing_values(tmp_path):
    rng = np.random.default_rng(0)
    values, classes = rng.standard_normal((60, 4)).astype(np.float32), np.arange(60) % 3
    values[np.arange(60), classes] += 5
    values[::7, 3] = np.nan
    rows = []
    for name in fewshot.CLASSIFIERS:
        answer = fewshot.predict(name, values[:30], classes[:30], values[30:], 0)
        rows.append(
            {'features': 'raw', 'classifier': name, 'labels': '10', 'seed': 0, **fewshot.scores(classes[30:], answer)}
        )
        assert rows[-1]['accuracy'] > 0.8
    fewshot.write_rows(tmp_path / 'a.csv', rows)
    assert [row['classifier'] for row in fewshot.read_rows(tmp_path / 'a.csv')] == list(fewshot.CLASSIFIERS)


def test_rows_of_other_files_do_not_count(tmp_path, monkeypatch):
    values, classes = np.zeros((2, 4, 1), np.float32), np.array([[0, 0, 1, 1]] * 2)
    monkeypatch.setattr(fewshot, 'belgium_features', lambda *_: ({'raw series': lambda _: values}, classes))
    monkeypatch.setattr(fewshot, 'predict', lambda name, train, classes, test, seed: np.zeros(len(test), int))
    for name in ('a', 'b', 'b'):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / 'x.tif').write_text(name)
        words = ['belgium', '--root', tmp_path / name, '--output', tmp_path, '--seeds', '1']
        monkeypatch.setattr('sys.argv', ['fewshot.py', *map(str, words)])
        fewshot.main()
    rows = fewshot.read_rows(tmp_path / 'fewshot-belgium.csv')
    assert len(rows) == 2 * len(fewshot.SHOTS) * len(fewshot.CLASSIFIERS)
    assert len({row['data'] for row in rows}) == 2


def test_table_has_the_standard_deviation_of_a_sample():
    key = {'features': 'raw', 'classifier': 'knn', 'labels': '5 folds', 'data': 'a', 'weights': ''}
    rows = [{**key, 'seed': seed, 'accuracy': x, 'macro_f1': 0.5, 'mean_iou': 0.4} for seed, x in ((0, 0.5), (1, 0.7))]
    assert fewshot.table(rows).splitlines()[1].split()[4:7] == ['0.600', '±', '0.141']
    assert fewshot.table(rows[:1]).splitlines()[1].split()[4:] == ['0.500', '0.500', '0.400']
