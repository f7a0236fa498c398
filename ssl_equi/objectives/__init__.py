"""Objectives: views and actions in, loss and named terms out.

One file per method, each a subclass of `base.Objective`; import it from its own file, for example
`from ssl_equi.objectives.sie import SIE, SIEConfig`. What several of them are made of is in `parts/`.
"""
