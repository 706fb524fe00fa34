"""Batches: models x recipes x seeds x texts, each through the commands from `convert` to `place`.

`config` is what a file may say, `plan` what is to be done for it, `estimate` what that may cost,
`work` does it, `results` keeps what came of it and makes the tables.
"""
