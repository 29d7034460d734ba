"""Work units on one process or many: resumable, and with the same bytes.

job.Job                  what a sharded stage has to do, for the stage and for repair
run.run_units            do all units that are not done yet
work_unit.WorkUnit       a piece of work; units_of cuts a list into them
isolation.attempt        one unit, whatever its items do to the process
ray_workers.with_ray     the processes
estimate.Estimate        what a run will take, said before it starts
scratch.scratch_folder   where a stage works until its result is whole; publish shows it, adopt takes it over
mapped.mapped_folder     arrays that are made once of large tables, and shared
fingerprint.fingerprint  what a result depends on, as one word

May import core and store.
"""
