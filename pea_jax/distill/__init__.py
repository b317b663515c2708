"""The paper: a student reads the native caption, a teacher the English one, through one UNet.

`losses` has the terms, `parts` the layout of a batch, `draws` what is random, `given` what does not
depend on the adapter, `state` what training changes, `step` the train step. Source: PEA-Diffusion
(arXiv 2311.17086).
"""
