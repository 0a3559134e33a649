"""Several processes (torchrun): each has its share of the clips and of every step. One alone skips it.

Codes that a single clip uses live with the process of that clip: a step costs the same with 64 clips and with
20,000. Codes that clips share, R and G are the same in every process, and their gradients are summed.
"""
import os
import sys
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as dist

import data_prep
from data_prep import DataError, printable

RANK = int(os.environ.get("RANK", 0))  # the number of this process, and how many there are: torchrun says so
WORLD = int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))

def say(text):
    """Print a text in process 0. Where it cannot be written (`| head`), go on: the run has its log."""
    try:
        if RANK == 0:
            print(text.encode("ascii", "backslashreplace").decode(), flush=True)  # for any terminal
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

def join_processes(device):
    """Meet the processes that torchrun started: over NCCL on GPUs, gloo on CPUs. Raises DataError."""
    if WORLD > 1:
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
        except (ValueError, RuntimeError) as error:
            raise DataError(f"the processes did not meet; use torchrun ({printable(error, 90)})") from None

def from_all(thing):
    """[the thing of process 0, of 1, ...] in every process."""
    things = [thing] * WORLD
    if WORLD > 1:
        dist.all_gather_object(things, thing)
    return things

def all_reduce(tensors):
    """Sum each tensor over the processes, in place, in one message."""
    if WORLD == 1:
        return
    total = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(total)
    for tensor, summed in zip(tensors, total.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(summed.view_as(tensor))

def all_reduce_gradients(model):
    """Sum the gradients. Norms see the frames of their process; what they keep for eval mode is averaged."""
    if WORLD > 1:
        norms = [kept for kept in model.G.buffers() if kept.is_floating_point()] if model.G.training else []
        all_reduce([p.grad for p in model.parameters() if p.grad is not None] + norms)
        for kept in norms:
            kept /= WORLD

def sum_shared_rows(ids, grad, rows):
    """The row ids [B] and gradients [B, ...] of this process -> those of all processes, summed by row."""
    if WORLD == 1:
        return ids, grad
    table = grad.new_zeros(rows, *grad.shape[1:]).index_add_(0, ids, grad)
    used = grad.new_zeros(rows).index_fill_(0, ids, 1)
    all_reduce([table, used])
    ids = used.nonzero().flatten()
    return ids, table[ids]

def share_of_process(clips, model):
    """This process's clips, every K-th, and {"z_s": row ids [n]}: rows that live in this process alone.

    Where every clip has a row of its own, the model's dictionary is cut to the rows of these clips."""
    own_rows = {}
    if WORLD == 1:
        return clips, own_rows
    for tensor in model.state_dict().values():  # the same start everywhere, to the bit
        dist.broadcast(tensor, 0)
    N = len(clips.names)
    mine = data_prep.subset(clips, range(RANK, N, WORLD))
    for name, ids in (("z_s", "static_id"), ("z_t", "transient_id")):
        dictionary = getattr(model, name)
        if len(set(getattr(clips, ids))) < N or len(dictionary.z) > N or name == "z_t" and model.G.labels:
            continue  # a label is the row's number among all
        own_rows[name] = torch.from_numpy(getattr(mine, ids))
        mine = replace(mine, **{ids: np.arange(len(mine.names))})
        dictionary.shared = False
        for key, values in list(dictionary.named_buffers()):
            setattr(dictionary, key, values[own_rows[name]])
    return mine, own_rows
