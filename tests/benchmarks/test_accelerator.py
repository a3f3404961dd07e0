# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

import argparse
import json
import subprocess
import sys
from pathlib import Path

import accelerator
import pytest
import torch

ROW = accelerator.Row('fine-tuning', 'tiny', 'float32', False)
SETTING = accelerator.Setting('cpu', 16, 3, 64, 0.0, 'eager', 1)


@pytest.mark.slow
def test_quick_on_the_cpu(tmp_path):
    path = tmp_path / 'result.json'
    words = ['--device', 'cpu', '--quick', '--threads', '1', '--output', str(path)]
    limits = ['--row-seconds', '200', '--compile-seconds', '200', '--test-seconds', '200', '--deadline', '500']
    subprocess.run([sys.executable, accelerator.__file__, *words, *limits], check=True, timeout=580)
    results = json.loads(path.read_text())
    for row in accelerator.rows(True):
        found = results['rows'][row.name]
        assert (found['status'], found['largest batch']) == ('done', 2)
        assert found['largest batch, ended by'] == 'limit of the batch'
        for batch in found['batches']:
            assert min(batch[key] for key in ('tiles/s', 'TFLOP/tile', 'GB')) > 0
            assert 0 <= batch['idle'] < 1
            assert batch['TFLOP/s'] == pytest.approx(batch['tiles/s'] * batch['TFLOP/tile'])
    assert len(results['agreement']) == 4
    assert all(accelerator.agrees(found) for found in results['agreement'].values())
    assert results['agreement']['fine-tuning float32']['gradient'] == 0
    assert 0 < results['agreement']['fine-tuning bf16']['output'] < 0.1
    assert results['gpu tests']['status'] == 'done'
    assert results['gpu tests']['tests'] >= 8
    table = path.with_suffix('.md').read_text()
    assert accelerator.NOT_RUN not in table
    assert table.count('| pass |') == 3
    assert table.count('| not conclusive') == 1  # pre-training in bf16, whose gradient differs on the CPU too


def test_fine_tuning_is_that_of_the_task():
    """It also trains on some modalities; agreement cannot, because devices draw others."""
    assert accelerator.prepare(ROW, 1, SETTING, 'cpu')[0].trains_on_both
    assert not accelerator.prepare(ROW, 1, SETTING, 'cpu', dropout=False)[0].trains_on_both


def test_overlapping_spans_count_once():
    assert accelerator.covered([(4.0, 5.0), (0.0, 2.0), (1.0, 3.0), (1.0, 1.5)]) == 4.0
    assert accelerator.covered([]) == 0.0


def test_batch_doubles_until_memory_ends(monkeypatch):
    def measured(row, setting, tiles):
        if tiles > 8:
            raise torch.OutOfMemoryError('no memory')
        return {'tiles/s': -abs(tiles - 4)}

    monkeypatch.setattr(accelerator, 'measure_batch', measured)
    sent = []
    accelerator.measure(ROW, SETTING, None, sent.append)
    found = accelerator.summary(sent, True)
    assert [batch['batch'] for batch in found['batches']] == [1, 2, 4, 8]
    assert (found['best']['batch'], found['largest batch'], found['largest batch, ended by']) == (4, 8, 'memory')
    assert accelerator.summary([{'largest': 0}], True)['reason'] == 'out of memory'


def test_other_errors_are_no_lack_of_memory(monkeypatch):
    def measured(row, setting, tiles):
        raise RuntimeError('device-side assert triggered')

    monkeypatch.setattr(accelerator, 'measure_batch', measured)
    with pytest.raises(RuntimeError, match='device-side'):
        accelerator.measure(ROW, SETTING, None, print)


def test_row_without_result_is_listed():
    limits = dict.fromkeys(accelerator.PARTS, 1e-3)
    differences = dict.fromkeys(accelerator.PARTS, 0.0)
    results = {
        'device': {'name': 'card'},
        'versions': {'torch': '2'},
        'tile': 'tile',
        'peak': None,
        'order': [ROW],
        'rows': {ROW.name: accelerator.summary([], False)},
        'agreement': {'fine-tuning float32': {**differences, 'limits': limits}},
        'gpu tests': {'status': accelerator.NOT_RUN},
    }
    assert '| fine-tuning | `tiny` | float32 | eager | not run: no result in time |' in accelerator.table(results)
    assert not accelerator.failed(results)
    results['agreement']['fine-tuning float32']['gradient'] = float('nan')
    assert accelerator.failed(results)
    assert '| FAIL |' in accelerator.table(results)


def test_only_known_cards_have_a_peak():
    assert accelerator.PEAKS.get('NVIDIA H200 NVL') is None
    assert Path(accelerator.__file__).parent == accelerator.HERE


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Arguments of a call, whose processes return the name of the row, and no result for compiled rows at first."""
    calls = []

    def apart(limit, threads, function, *args):
        if function is accelerator.about:
            return [{'name': 'card', 'product, TFLOP/s': {'bf16': 1.0}}], True
        if function is accelerator.agreement:
            same = dict.fromkeys(accelerator.PARTS, 0.0)
            return [{**same, 'limits': same}], True
        row, _, batch = args
        calls.append((row.name, batch))
        best = {'batch': batch or 4, 'tiles/s': 1.0, 'TFLOP/s': 0.5, 'GB': 1.0, 'idle': None}
        return ([] if row.compiled and len(calls) < 5 else [best]), True

    monkeypatch.setattr(accelerator, 'apart', apart)
    monkeypatch.setattr(accelerator, 'gpu_tests', lambda limit: {'status': 'done', 'tests': 1})
    words = {'device': 'cuda', 'quick': True, 'rows': '', 'resume': False, 'peak_tflops': None, 'largest_batch': 4}
    limits = dict.fromkeys(('row_seconds', 'compile_seconds', 'test_seconds', 'deadline'), 100.0)
    return argparse.Namespace(**words, **limits, threads=0, output=tmp_path / 'results.json'), calls


def test_rest_of_the_rows_is_resumed(arguments, monkeypatch):
    args, calls = arguments
    first = accelerator.run(args)
    *eager, compiled = accelerator.rows(True)
    assert [first['rows'][row.name]['status'] for row in eager] == ['done'] * 3
    assert first['rows'][compiled.name]['status'] == accelerator.NOT_RUN
    monkeypatch.setattr(accelerator, 'gpu_tests', None)
    args.resume, args.rows, calls[:] = True, 'compiled', calls + [None]
    results = accelerator.run(args)
    assert calls[-1] == (compiled.name, 4)  # the fastest batch of the row without compilation
    assert len(calls) == 6
    assert [row['status'] for row in results['rows'].values()] == ['done'] * 4
    assert results['order'] == accelerator.rows(True)
    assert json.loads(args.output.read_text())['agreement'] == first['agreement']
    assert accelerator.NOT_RUN not in args.output.with_suffix('.md').read_text()


def test_another_device_is_not_resumed(arguments):
    args, _ = arguments
    accelerator.run(args)
    before = json.loads(args.output.read_text())
    args.output.write_text(json.dumps(before | {'device': {'name': 'other'}}))
    args.resume = True
    with pytest.raises(SystemExit, match='device was other, but is card'):
        accelerator.run(args)
