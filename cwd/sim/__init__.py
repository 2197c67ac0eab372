"""The core in virtual time: a discrete-event host with emulated GPUs, faults by seed, and checkers."""

#: each a module of `experiments`, with a line of help; here, so that a list of them imports nothing
EXPERIMENTS = {
    "fig5": "15 ResNet-50 on one GPU, closed loops, SLOs from 10 to 500 ms.",
    "fig6": "3600 ResNet-50 on one GPU, one more asked for each second.",
    "fig7": "How low SLOs can be: 12 and 48 models on 6 GPUs, three rates.",
    "fig8": "Isolation: models with SLOs beside batch clients without.",
    "overload": "From half to five times what the GPUs can do.",
    "scale": "10 to 1,000 GPUs, then more load than 100 of them can serve.",
    "orloj": "Execution times that depend on hidden data: one model on one GPU.",
    "maf": "Azure Functions on 4026 models and 12 GPUs.",
    "soak": "A small world by chance with faults, checked after every instant.",
}
