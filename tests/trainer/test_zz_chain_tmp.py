import pytest, torch
from megatron_nextflow import loop, checkpoint
from megatron_nextflow.launch import launch
from megatron_nextflow.model_config import ParallelConfig
from megatron_nextflow.metrics import read_metrics
CPU=torch.device("cpu")
def test_chain(make_config, training_data, tmp_path, capfd):
    def st(c,**m): return c.model_copy(update={"model":c.model.model_copy(update=m)})
    a=tmp_path/"a"; loop.train(st(make_config(training_data,a,steps=2),max_scales=4),CPU)
    ref=tmp_path/"ref"; loop.train(st(make_config(training_data,ref,steps=3,init_from=a),max_scales=6),CPU)
    for i,par in enumerate([dict(tp=2,sequence_parallel=True),dict(pp=2),dict(pp=2,vpp=2)]):
        b=tmp_path/f"b{i}"
        assert launch(st(make_config(training_data,b,steps=3,init_from=a,parallel=ParallelConfig(**par)),max_scales=6),tmp_path,2)==0
        for x,y in zip(read_metrics(ref),read_metrics(b),strict=True):
            print(par,x["loss"],y["loss"],x["grad_norm"],y["grad_norm"])
            assert x["loss"]==pytest.approx(y["loss"],rel=1e-5)
    print(capfd.readouterr().out[-3000:])
