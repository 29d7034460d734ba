"""Training of Psi and Psi_3d.

psi.train_psi            stage train
psi3d.train_psi3d        stage train_psi3d
loop.TrainingLoop        counted steps, exact resume, moving average
schedule.set_rates       learning rates over a run
synthetic_batches.SyntheticHeads  batches for Psi_3d
view_batches.PseudoMultiView  batches for Psi
image_terms.image_terms  the terms that both share; losses has the losses themselves
adversary.Adversary      the discriminator
sparse_rays.SparseRays   steps on a part of the rays

May import the levels below.
"""
