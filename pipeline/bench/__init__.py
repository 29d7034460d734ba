"""The speed of inference beside what the machine can do.

inference.bench          `psi4d bench`
floor.floor              the least time by measured rates
scene.Scene              what is rendered
clock.measured           seconds, operations and memory of a run
report.markdown          the table of README.md from the JSON of a run
machine.machine_facts    what a number belongs to: CPU, torch, commit

May import the levels below.
"""
