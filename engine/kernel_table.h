// The kernels of one tier. Each isa/*.cpp fills one such table, from the same sources under other compiler flags.
#pragma once
#include "dtype.h"
#include "kernels/attention.h"
#include "kernels/elements.h"
#include "kernels/gemm.h"
#include "kernels/matrix.h"
#include "kernels/optim.h"
#include "kernels/quant.h"
#include "kernels/rows.h"

namespace attune {

struct KernelTable {
  GemmKernels gemm;
  AttentionKernels attention;
  QuantKernels quant;
  RowKernels rows;
  ElementKernels elements;
  OptimKernels optim;
  MatrixKernels matrix;
};

/// The table of the tier in use. Kernels check nothing: sizes and indices were checked at the border (binding/).
const KernelTable& kernels();

} // namespace attune
