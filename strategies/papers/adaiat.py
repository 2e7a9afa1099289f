"""The paper of IAT and AdaIAT, which raise the attention to generated text."""

ADAIAT = """@inproceedings{zhong2026adaiat,
  title     = {{AdaIAT}: Adaptively Increasing Attention to Generated Text to Alleviate
               Hallucinations in {LVLM}},
  author    = {Zhong, Li'an and He, Ziqiang and Zheng, Jibin and Li, Jin and Wang, Z. Jane and
               Kang, Xiangui},
  booktitle = {CVPR},
  year      = {2026}
}"""
