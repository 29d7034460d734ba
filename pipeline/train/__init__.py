"""Training of Psi and Psi_3d.

psi.train_psi            stage train; psi_objective has Eq. 5
psi3d.train_psi3d        stage train_psi3d; psi3d_objective has Eq. 2
task.Task                what a training is: networks, optimisers, batches, losses
loop.train               the steps of a task, from its last checkpoint to its end
distributed.launch       several processes; tree adds what they make, with the bits of one
step_sum.StepSum         what the microbatches of a step add up to
checkpoint.Checkpoints   the state of a task on disk
watch.Watch              the line in the terminal and the curves; stopping hears signals
synthesizer.SynthesizerTask  what the tasks of Psi and Psi_3d share
schedule.set_rates       learning rates over a run
precision.use_bfloat16   the number types of networks
synthetic_batches.SyntheticHeads  batches for Psi_3d
view_batches.PseudoMultiView  batches for Psi
image_terms.image_terms  the terms that both share; losses has the losses themselves
adversary.Adversary      the discriminator
sparse_rays.SparseRays   steps on a part of the rays
validation.Validation    pictures of people who are not trained on

May import the levels below.
"""
