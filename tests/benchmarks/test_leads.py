# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""The table of leads in the report is that of the committed trials."""

import csv

import lead_table


def test_report_has_the_table_of_all_trials() -> None:
    assert lead_table.table() in (lead_table.RESULTS.parent / 'reports/leads.md').read_text()
    known, tried = (
        {row['lead'] for row in csv.DictReader((lead_table.RESULTS / name).open())}
        for name in ('leads.csv', 'leads-synthetic-small.csv')
    )
    assert known == tried
