"""llama.cpp's own quantizer: gguf_quantize.py F32.gguf OUT.gguf TYPE, by llama-cpp-python."""

import sys

import llama_cpp

TYPES = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}



@llama_cpp.llama_log_callback
def say_nothing(_level, _text, _data):
    pass


llama_cpp.llama_log_set(say_nothing, None)
source, target, kind = sys.argv[1:]
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.nthread = 2
parameters.ftype = TYPES[kind]
assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), parameters) == 0
