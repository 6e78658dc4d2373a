"""llama.cpp's own quantizer: gguf_quantize.py LLAMA F32.gguf OUT.gguf TYPE, by the libraries that node-llama-cpp brings in the folder LLAMA."""

import ctypes
import glob
import os
import sys

TYPES = {"q8_0": 7, "q4_0": 2, "q4_k_m": 15}  # llama_ftype


class Parameters(ctypes.Structure):
    """The beginning of llama_model_quantize_params, and room for the rest of it."""

    _fields_ = [("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32), ("rest", ctypes.c_byte * 512)]


@ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
def say_nothing(_level, _text, _data):
    pass


folder, source, target, kind = sys.argv[1:]
binaries = os.path.join(folder, "node_modules/@node-llama-cpp/linux-x64/bins/linux-x64")
for name in ["libggml-base*.so", "libggml.*so", "libllama.*so"]:  # each needs those before it
    llama = ctypes.CDLL(glob.glob(os.path.join(binaries, name))[0], mode=ctypes.RTLD_GLOBAL)
llama.llama_log_set(say_nothing, None)
llama.llama_model_quantize_default_params.restype = Parameters
parameters = llama.llama_model_quantize_default_params()
parameters.nthread = 2
parameters.ftype = TYPES[kind]
assert llama.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)) == 0
