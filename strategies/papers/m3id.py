"""The paper behind two schedules of this folder, which it puts together."""

M3ID = """@inproceedings{favero2024m3id,
  title     = {Multi-Modal Hallucination Control by Visual Information Grounding},
  author    = {Favero, Alessandro and Zancato, Luca and Trager, Matthew and
               Choudhary, Siddharth and Perera, Pramuditha and Achille, Alessandro and
               Swaminathan, Ashwin and Soatto, Stefano},
  booktitle = {CVPR},
  year      = {2024}
}"""
