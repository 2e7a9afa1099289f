"""The paper of the stream through one layer's heads, and of the switch that mixes it in."""

ONLY = """@inproceedings{wan2025only,
  title     = {ONLY: One-Layer Intervention Sufficiently Mitigates Hallucinations in Large
               Vision-Language Models},
  author    = {Wan, Zifu and Zhang, Ce and Yong, Silong and Ma, Martin Q. and
               Stepputtis, Simon and Morency, Louis-Philippe and Ramanan, Deva and
               Sycara, Katia and Xie, Yaqi},
  booktitle = {ICCV},
  year      = {2025}
}"""
"""Papers that several files cite."""
