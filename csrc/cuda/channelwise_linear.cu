// Channel-wise linear map as small matrix products, one channel a block, in the exact arithmetic of
// the accumulation type. The tile of outputs has the exact size of the paper's 6x6 maps and of
// their neighbours 4x4 and 8x8; other sizes are covered by tiles of 64. Sums run in an order that
// depends on the shape alone.
#include "device.h"

namespace cekernels {
namespace cuda {
namespace {

constexpr int kDepth = 16;  // of the operands held in shared memory
constexpr int kEach = 4;    // rows and columns of one thread

// Matrices of every channel: element (row, column) of channel c.
template <class T>
struct View {
  const T* data;
  int64_t channel, row, column;
  __device__ __forceinline__ const T* at(int64_t c, int64_t r, int64_t k) const {
    return data + c * channel + r * row + k * column;
  }
};

// out (rows, columns) = a (rows, depth) b (depth, columns) + bias (columns), of every channel.
// `gate` has the shape of a: where it is not above 0, a counts as 0. `row_sums` takes the sums of
// the rows of a.
template <class T>
struct Product {
  int64_t channels, rows, columns, depth;
  View<T> a, gate, b;
  const T* bias;
  int64_t bias_channel;
  bool relu;
  T* out;
  int64_t out_channel, out_row;
  T* row_sums;  // (channels, rows)
};

template <class T, int kRows, int kColumns>
__global__ void __launch_bounds__(kRows / kEach * kColumns / kEach) multiply(Product<T> p) {
  using A = acc_t<T>;
  constexpr int kThreads = kRows / kEach * kColumns / kEach;
  __shared__ A a_tile[kDepth][kRows + 1];
  __shared__ A b_tile[kDepth][kColumns];
  const int64_t row_tiles = (p.rows + kRows - 1) / kRows;
  const int64_t column_tiles = p.columns > 0 ? (p.columns + kColumns - 1) / kColumns : 1;
  const int my_row = int(threadIdx.x) / (kColumns / kEach) * kEach;
  const int my_column = int(threadIdx.x) % (kColumns / kEach) * kEach;

  for (int64_t block = blockIdx.x; block < p.channels * row_tiles * column_tiles;
       block += gridDim.x) {
    const int64_t c = block % p.channels, tile = block / p.channels;
    const int64_t row0 = tile / column_tiles * kRows, column0 = tile % column_tiles * kColumns;
    A sum[kEach][kEach] = {};
    A row_sum[kEach] = {};
    for (int64_t k0 = 0; k0 < p.depth; k0 += kDepth) {
      __syncthreads();
      for (int i = int(threadIdx.x); i < kDepth * kRows; i += kThreads) {
        // Neighbouring threads read what is dense: along the depth, or along the rows.
        const int k = p.a.column == 1 ? i % kDepth : i / kRows;
        const int r = p.a.column == 1 ? i / kDepth : i % kRows;
        const bool exists = row0 + r < p.rows && k0 + k < p.depth;
        A x = exists ? A(widen(*p.a.at(c, row0 + r, k0 + k))) : A(0);
        if (exists && p.gate.data != nullptr && !(widen(*p.gate.at(c, row0 + r, k0 + k)) > 0)) {
          x = 0;
        }
        a_tile[k][r] = x;
      }
      for (int i = int(threadIdx.x); i < kDepth * kColumns; i += kThreads) {
        const int k = p.b.column == 1 ? i / kColumns : i % kDepth;
        const int n = p.b.column == 1 ? i % kColumns : i / kDepth;
        const bool exists = column0 + n < p.columns && k0 + k < p.depth;
        b_tile[k][n] = exists ? A(widen(*p.b.at(c, k0 + k, column0 + n))) : A(0);
      }
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < kDepth; ++k) {
#pragma unroll
        for (int m = 0; m < kEach; ++m) {
          const A x = a_tile[k][my_row + m];
          row_sum[m] += x;
#pragma unroll
          for (int n = 0; n < kEach; ++n) sum[m][n] += x * b_tile[k][my_column + n];
        }
      }
    }
#pragma unroll
    for (int m = 0; m < kEach; ++m) {
      const int64_t row = row0 + my_row + m;
      if (row >= p.rows) continue;
      if (p.row_sums != nullptr && column0 + my_column == 0) {
        p.row_sums[c * p.rows + row] = narrow<T>(row_sum[m]);
      }
#pragma unroll
      for (int n = 0; n < kEach; ++n) {
        const int64_t column = column0 + my_column + n;
        if (column >= p.columns) continue;
        A y = sum[m][n];
        if (p.bias != nullptr) y += A(widen(p.bias[c * p.bias_channel + column]));
        if (p.relu && y < 0) y = 0;  // NaN stays
        p.out[c * p.out_channel + row * p.out_row + column] = narrow<T>(y);
      }
    }
  }
}

template <class T, int kRows, int kColumns>
void start_tiles(const Product<T>& p, void* stream) {
  const int64_t column_tiles = p.columns > 0 ? divide_up(p.columns, kColumns) : 1;
  const int64_t blocks = p.channels * divide_up(p.rows, kRows) * column_tiles;
  CEK_LAUNCH((multiply<T, kRows, kColumns>), grid_of(blocks), kRows / kEach * kColumns / kEach,
             stream, p);
}

template <class T>
void start(const Product<T>& p, void* stream) {
  switch (p.columns) {
    case 16: return start_tiles<T, 64, 16>(p, stream);
    case 36: return start_tiles<T, 64, 36>(p, stream);
    default: return start_tiles<T, 64, 64>(p, stream);
  }
}

template <class T>
const T* of(const void* pointer) {
  return static_cast<const T*>(pointer);
}

template <class T>
const char* forward(const LinearForward& p, void* stream) {
  Product<T> q{};
  q.channels = p.channels, q.rows = p.batch, q.columns = p.n_out, q.depth = p.n_in;
  q.a = {of<T>(p.input), p.input_channel, p.input_batch, 1};
  q.b = {of<T>(p.weight), p.weight_channel, 1, p.weight_row};
  q.bias = of<T>(p.bias), q.bias_channel = p.bias_channel, q.relu = p.relu;
  q.out = static_cast<T*>(p.output), q.out_channel = p.n_out, q.out_row = p.channels * p.n_out;
  start(q, stream);
  return launch_error();
}

template <class T>
const char* backward(const LinearBackward& p, void* stream) {
  if (p.grad_input != nullptr && p.batch * p.n_in > 0) {
    Product<T> q{};
    q.channels = p.channels, q.rows = p.batch, q.columns = p.n_in, q.depth = p.n_out;
    q.a = {of<T>(p.grad_output), p.grad_channel, p.grad_batch, 1};
    q.gate = {of<T>(p.output), p.output_channel, p.output_batch, 1};
    q.b = {of<T>(p.weight), p.weight_channel, p.weight_row, 1};
    q.out = static_cast<T*>(p.grad_input);
    q.out_channel = p.n_in, q.out_row = p.channels * p.n_in;
    start(q, stream);
  }
  if (p.grad_weight != nullptr || p.grad_bias != nullptr) {
    Product<T> q{};
    q.channels = p.channels, q.rows = p.n_out, q.depth = p.batch;
    q.columns = p.grad_weight != nullptr ? p.n_in : 0;  // 0: the sums of the rows alone
    q.a = {of<T>(p.grad_output), p.grad_channel, 1, p.grad_batch};
    q.gate = {of<T>(p.output), p.output_channel, 1, p.output_batch};
    q.b = {of<T>(p.input), p.input_channel, p.input_batch, 1};
    q.out = static_cast<T*>(p.grad_weight);
    q.out_channel = p.n_out * p.n_in, q.out_row = p.n_in;
    q.row_sums = static_cast<T*>(p.grad_bias);
    start(q, stream);
  }
  return launch_error();
}

}  // namespace

const char* run(const LinearForward& p, void*, void* stream) {
  switch (p.dtype) {
    case DType::f64: return forward<double>(p, stream);
    case DType::bf16: return forward<BFloat16>(p, stream);
    case DType::f16: return forward<Half>(p, stream);
    default: return forward<float>(p, stream);
  }
}

const char* run(const LinearBackward& p, void*, void* stream) {
  switch (p.dtype) {
    case DType::f64: return backward<double>(p, stream);
    case DType::bf16: return backward<BFloat16>(p, stream);
    case DType::f16: return backward<Half>(p, stream);
    default: return backward<float>(p, stream);
  }
}

}  // namespace cuda
}  // namespace cekernels
