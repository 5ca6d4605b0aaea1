"""What is measured on a GPU: ``python -m benchmarks.gpu --base BASE --data DATA --out OUT``.

A machine with a GPU may be at hand for minutes only, without a network. So everything runs with one
command within a given time, and each part writes its figures as it goes: a stop loses at most what
the part under way has not finished.

```
parts.py        the table of the parts; what a part is given
__main__.py     the command: one process after the other, each with its share of the time
throughput.py   training tokens/s beside plain PEFT and the plain Trainer
decode.py       many adapters in one batch, CUDA graphs, the serving engine under load
page.py         the gradient probe on a base of Llama-3.2-1B's shape, bf16 and nf4
quality.py      private adapters and router beside one joint LoRA, many trainings at a time
queue.py        jobs of one GPU, spread over processes, until the time is up
rehearsal.py    tiny stand-ins for base and data, for a machine without a GPU
pack.py         for a machine without a network: split a large file, and join it there
```
"""
