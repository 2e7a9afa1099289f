"""IBD's paper."""

IBD = """@inproceedings{zhu2025ibd,
  title     = {{IBD}: Alleviating Hallucinations in Large Vision-Language Models via Image-Biased
               Decoding},
  author    = {Zhu, Lanyun and Ji, Deyi and Chen, Tianrun and Xu, Peng and Ye, Jieping and
               Liu, Jun},
  booktitle = {CVPR Workshops},
  year      = {2025}
}"""
