"""Tiny random models of families that no file in models/ knows, and prompts for them."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from .tiny import (
    BOS,
    END,
    EOS,
    IMAGE,
    NEWLINE,
    PAD,
    QUESTIONS,
    START,
    THETA,
    VIDEO,
    VOCAB,
    Inputs,
    _randomise,
    _stacked,
    around,
    pixels,
    text,
    vision,
)


def _got_ocr2():
    tower = dict(hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, mlp_dim=32, image_size=32, patch_size=2, window_size=4, global_attn_indexes=[1])
    return {"text_config": text("qwen2"), "vision_config": tower, "image_token_index": IMAGE}

def _got_prompt(row):
    return around(row, START, *[IMAGE]*16, END), {"pixel_values": pixels(row,1,3,32,32)}
def _got_tiles(row):
    n=(2,1)[row]
    return around(row, START, *[IMAGE]*16*n, END), {"pixel_values": pixels(row,n,3,32,32)}

def _cohere2_vision():
    return {"text_config": text("cohere2", sliding_window=64, num_hidden_layers=4), "vision_config": vision("siglip_vision_model"), "image_token_id": IMAGE, "downsample_factor": 2, "alignment_intermediate_size": 32}
def _cohere_prompt(row):
    return around(row, START, *[IMAGE]*4, END), {"pixel_values": pixels(row,1,3,8,8)}

def _lighton():
    tower = vision("pixtral", image_size=16, num_channels=3, head_dim=8)
    return {"text_config": text("qwen3"), "vision_config": tower, "image_token_id": IMAGE, "spatial_merge_size": 2}
def _lighton_prompt(row):
    h,w=((2,4),(4,2))[row]
    size=(4*h,4*w)
    return around(row, START, *[IMAGE]*h*w, END), {"pixel_values": pixels(row,1,3,*size), "image_sizes": torch.tensor([size])}

def _qianfan():
    tower = vision("qianfan_ocr_vision", image_size=[8,8], patch_size=[2,2], drop_path_rate=0.0)
    return {"text_config": text("qwen3"), "vision_config": tower, "image_token_id": IMAGE, "downsample_ratio": 0.5}

def _aria():
    return {"text_config": text("aria_text", moe_num_experts=4, moe_topk=2), "vision_config": vision("idefics3_vision"), "image_token_index": IMAGE, "projector_patch_to_query_dict": {16: 6}}
def _aria_prompt(row):
    return around(row, START, *[IMAGE]*6, END), {"pixel_values": pixels(row,1,3,8,8), "pixel_mask": torch.ones(1,8,8,dtype=torch.bool)}

def _video_llama():
    tower = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=2)
    return {"text_config": text("qwen2"), "vision_config": tower, "image_token_id": IMAGE, "video_token_id": VIDEO}
def _video_llama_prompt(row):
    grid=((1,4,6),(1,8,4))[row]; n=grid[1]*grid[2]
    return around(row, START, *[IMAGE]*(n//4), END), {"pixel_values": pixels(row,n,12), "image_grid_thw": torch.tensor([grid]), "image_merge_sizes": torch.tensor([2])}

def _glm46v():
    from .tiny import _grid
    c=_grid("glm4v"); c["text_config"]["model_type"]="glm4v_text"; c["vision_config"]["model_type"]="glm4v_vision"; c.pop("image_start_token_id",None)
    return c
def _exaone():
    rope={"rope_type":"default","rope_theta":THETA}
    return {"text_config": text("exaone4", sliding_window=64, layer_types=["sliding_attention","full_attention","sliding_attention"]),"vision_config": dict(depth=2,num_heads=2,num_key_value_heads=1,patch_size=2,spatial_merge_size=2,temporal_patch_size=2,window_size=8,fullatt_block_indexes=[1],hidden_size=16,out_hidden_size=32,intermediate_size=32),"image_token_id":IMAGE,"video_token_id":VIDEO}
def _paddle():
    t=text("paddleocr_vl_text", rope_parameters={"rope_type":"default","rope_theta":THETA,"mrope_section":[2,1,1]}); t.pop("model_type")
    return {"text_config": t, "vision_config": dict(hidden_size=16,intermediate_size=32,num_hidden_layers=2,num_attention_heads=2,image_size=8,patch_size=2,spatial_merge_size=2), "image_token_id":IMAGE,"video_token_id":VIDEO,"vision_start_token_id":START,"vision_end_token_id":END}
def _paddle_prompt(row):
    grid=((1,4,6),(1,8,4))[row]; n=grid[1]*grid[2]
    return around(row, START, *[IMAGE]*(n//4), END), {"pixel_values": pixels(row,n,3,2,2), "image_grid_thw": torch.tensor([grid])}

def _deepseek_hybrid():
    return {"text_config": text("llama"),"vision_config": vision("siglip_vision_model"),"high_res_vision_config": dict(hidden_size=16,output_channels=8,num_hidden_layers=2,num_attention_heads=2,mlp_dim=32,image_size=32,patch_size=4,window_size=4,global_attn_indexes=[1],model_type="sam_vision_model"),"image_token_id":IMAGE}
def _hybrid_prompt(row):
    return around(row,*[IMAGE]*16), {"pixel_values":pixels(row,1,3,8,8),"high_res_pixel_values":pixels(row+5,1,3,32,32)}

def _llama4():
    t=text("llama4_text", num_local_experts=2, num_experts_per_tok=1, intermediate_size_mlp=48, interleave_moe_layer_step=2, attention_chunk_size=64, no_rope_layers=[1,1,0], layer_types=["chunked_attention","chunked_attention","full_attention"])
    v=vision("llama4_vision_model", vision_output_dim=16, projector_input_dim=16, projector_output_dim=16, pixel_shuffle_ratio=0.5, num_channels=3, intermediate_size=64)
    return {"text_config": t,"vision_config": v,"image_token_index":IMAGE,"boi_token_index":START,"eoi_token_index":END}

# refused
def _lfm2():
    t={"model_type":"lfm2","vocab_size":VOCAB,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"layer_types":["conv","full_attention"],"pad_token_id":PAD,"bos_token_id":BOS,"eos_token_id":None}
    return {"text_config": t,"vision_config": dict(model_type="siglip2_vision_model",hidden_size=16,intermediate_size=32,num_hidden_layers=2,num_attention_heads=2,patch_size=2,num_patches=16),"image_token_id":IMAGE,"downsample_factor":2}
def _mllama():
    return {"text_config": dict(model_type="mllama_text_model",vocab_size=VOCAB,hidden_size=32,intermediate_size=48,num_hidden_layers=3,num_attention_heads=4,num_key_value_heads=2,cross_attention_layers=[1],pad_token_id=PAD,bos_token_id=BOS,eos_token_id=EOS,rope_parameters={"rope_type":"default","rope_theta":THETA}),"vision_config": dict(hidden_size=16,attention_heads=2,num_hidden_layers=2,num_global_layers=1,intermediate_size=32,image_size=8,patch_size=2,intermediate_layers_indices=[0],vision_output_dim=32,max_num_tiles=1,supported_aspect_ratios=[[1,1]]),"image_token_index":IMAGE}
def _florence2():
    return {"text_config": dict(model_type="bart",vocab_size=VOCAB,d_model=16,encoder_layers=1,decoder_layers=1,encoder_attention_heads=2,decoder_attention_heads=2,encoder_ffn_dim=16,decoder_ffn_dim=16),"vision_config": dict(embed_dim=[16,16],depths=[1,1],num_heads=[2,2],num_groups=[2,2],patch_size=[3,3],patch_stride=[2,2],patch_padding=[1,1],patch_prenorm=[False,True],projection_dim=16,window_size=2),"image_token_id":IMAGE}
def _blip2():
    q=dict(vocab_size=50,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32,encoder_hidden_size=16,cross_attention_frequency=1)
    return {"text_config": dict(model_type="opt",vocab_size=VOCAB,hidden_size=32,ffn_dim=48,num_hidden_layers=2,num_attention_heads=4,word_embed_proj_dim=32,max_position_embeddings=64),"vision_config": vision("blip_2_vision_model"),"qformer_config": q,"num_query_tokens":6,"image_token_index":IMAGE}
def _fuyu():
    return {"vocab_size":VOCAB,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,"num_attention_heads":4,"patch_size":4,"image_token_id":IMAGE,"text_config":dict(model_type="persimmon",vocab_size=VOCAB,hidden_size=32,intermediate_size=48,num_hidden_layers=2,num_attention_heads=4,max_position_embeddings=128)}
def _chameleon():
    return {"vocab_size":VOCAB,"hidden_size":32,"intermediate_size":48,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"vq_config":dict(embed_dim=8,num_embeddings=20,latent_channels=8,resolution=16,base_channels=32,channel_multiplier=[1,1],num_res_blocks=1,attn_resolutions=[]),"vocabulary_map":{**{f"IMGIMG{'ABCDEFGHIJ'[i//10]}{'ABCDEFGHIJ'[i%10]}Z":60+i for i in range(20)},"<image>":IMAGE}}


@dataclass(frozen=True)
class Unknown:
    model_type: str
    config: Callable[[], dict[str, Any]]
    prompt: Callable[[int], tuple[list[int], Inputs]] | None = None
    dtype: torch.dtype = torch.float64
    types: str | None = None

A=_cohere_prompt
FAM: Mapping[str, Unknown] = {u if isinstance(u,str) else u: v for u,v in {
 "got_ocr2": Unknown("got_ocr2",_got_ocr2,_got_prompt),
 "got_ocr2-tiles": Unknown("got_ocr2",_got_ocr2,_got_tiles),
 "cohere2_vision": Unknown("cohere2_vision",_cohere2_vision,_cohere_prompt),
 "lighton_ocr": Unknown("lighton_ocr",_lighton,_lighton_prompt),
 "qianfan_ocr": Unknown("qianfan_ocr",_qianfan,_cohere_prompt),
 "aria": Unknown("aria",_aria,_aria_prompt),
 "video_llama_3": Unknown("video_llama_3",_video_llama,_video_llama_prompt),
 "exaone4_5": Unknown("exaone4_5",_exaone,lambda r: (_video_llama_prompt(r)[0], {"pixel_values":pixels(r,(24,32)[r],24),"image_grid_thw":_video_llama_prompt(r)[1]["image_grid_thw"]})),
 "paddleocr_vl": Unknown("paddleocr_vl",_paddle,_paddle_prompt,types="mm_token_type_ids"),
 "glm46v": Unknown("glm46v",_glm46v,lambda r: __import__("tests.models.tiny",fromlist=["x"])._patches(r),types="mm_token_type_ids"),
 "deepseek_vl_hybrid": Unknown("deepseek_vl_hybrid",_deepseek_hybrid,_hybrid_prompt),
 "llama4": Unknown("llama4",_llama4,_cohere_prompt),
 "lfm2_vl": Unknown("lfm2_vl",_lfm2),
 "mllama": Unknown("mllama",_mllama),
 "florence2": Unknown("florence2",_florence2),
 "blip-2": Unknown("blip-2",_blip2),
 "fuyu": Unknown("fuyu",_fuyu),
 "chameleon": Unknown("chameleon",_chameleon,lambda r: (around(r,START,*[IMAGE]*64,END),{"pixel_values":pixels(r,1,3,16,16)})),
}.items()}

@functools.cache
def tiny(name):
    family = FAM[name]
    config = AutoConfig.for_model(family.model_type, **family.config())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config).eval()
        _randomise(model)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, PAD
    return model.to(family.dtype)

def inputs(name, *rows):
    family = FAM[name]
    prompts=[family.prompt(r) for r in rows]
    made=_stacked([{"input_ids": torch.tensor([ids])} for ids,_ in prompts], left=True)
    made|=_stacked([{"attention_mask": torch.ones(1,len(p[0])).long()} for p in prompts], left=True)
    if family.types: made[family.types]=(made["input_ids"]==IMAGE).long()
    images=_stacked([i for _,i in prompts], left=False)
    images["pixel_values"]=images["pixel_values"].to(family.dtype)
    return made|images
