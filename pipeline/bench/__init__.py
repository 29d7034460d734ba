"""The speed of inference and of training beside what the machine can do.

inference.bench          `psi4d bench`
training.bench_training  `psi4d bench --train`
floor.floor              the least time by measured rates
scene.Scene              what is rendered
clock.measured           seconds, operations and memory of a run
report.markdown          the table of README.md from the JSON of a run
machine.machine_facts    what a number belongs to: CPU, torch, commit

May import the levels below, and train, which it measures.
"""
