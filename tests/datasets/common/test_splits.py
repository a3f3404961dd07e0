# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

from pathlib import Path

import pytest

from torchgeo_omnisat.datasets.common.splits import read_splits


@pytest.mark.parametrize('text', ['id,split\na,10000,train\nb,10001,val\n', 'id,split\n10000,train,\n10001,val,\n'])
def test_rows_with_more_fields_than_the_header(tmp_path: Path, text: str) -> None:
    (tmp_path / 's.csv').write_text(text)
    with pytest.raises(ValueError, match=r's\.csv .*more fields than the 2 columns'):
        read_splits(tmp_path / 's.csv')


def test_further_columns_are_ignored(tmp_path: Path) -> None:
    (tmp_path / 's.csv').write_text('id,split,place\n10000,train,x\n10001,val,\n')
    assert read_splits(tmp_path / 's.csv') == {'train': ['10000'], 'val': ['10001'], 'test': []}
