"""The paper: a student reads the native caption, a teacher the English one, through one UNet.

    losses          the terms of the loss and their weighted sum
    batch           the two parts of a batch, native and parallel
    noise           everything random in a step
    frozen_forward  the part of the loss that the adapter does not change
    state           what training changes
    optimizer       AdamW and its learning rate
    step            loss, gradient and the train step

Source: PEA-Diffusion (arXiv 2311.17086).
"""
