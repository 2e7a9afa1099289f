import torch, cdkit, transformers, os
import pytest
graphs=[]
def backend(gm, ex):
    graphs.append(gm); return gm.forward
@pytest.mark.parametrize("name", os.environ.get("NAMES","cmac").split(","))
def test_x(as_for_a_user, name, model, processor, make_inputs):
    graphs.clear(); torch._dynamo.reset()
    cfg = transformers.generation.CompileConfig(backend=backend, fullgraph=True, mode=None)
    inputs = make_inputs("is there a cat ?", "is there a dog w2 w5 ?")
    inputs2 = make_inputs("is ?", "w2 w5 ?")
    with cdkit.attach(model, cdkit.load(name), processor=processor):
        import time; T=time.time()
        for i in (inputs, inputs2, make_inputs("before w4 <image> w4"), inputs, make_inputs("w3 <image> is <image> w4 ?", "w5")):
            kw = dict(max_new_tokens=20, do_sample=False, return_dict_in_generate=True, output_logits=True)
            a = model.generate(**i, **kw)
            b = model.generate(**i, cache_implementation="static", compile_config=cfg, **kw)
            print(round(time.time()-T,1), name, len(graphs), "ERR", (torch.stack(a.logits)-torch.stack(b.logits)).nan_to_num(0,0,0).abs().max().item())
            assert a.sequences.equal(b.sequences)
