// Channel-wise linear map: a small matrix product per channel.
//
// Square maps of 6x6 locations, as in the paper, and of 4x4 and 8x8 have kernels of their exact
// size, which keep the weights of a channel on chip during the loop over the batch. These use
// tensor cores (16-bit types; float32 if the precision allows TF32) or exact arithmetic. Their
// backward pass reads each operand once for all three gradients. Blocks process slices of the
// batch; the sums of the slices go to a workspace and are added in a fixed order by a second
// launch. Other sizes are covered by tiles of 64 in exact arithmetic. Slices and summation orders
// depend on the shape alone.
#include "mma.h"

namespace cekernels {
namespace cuda {
namespace {

template <class T, int V>
__device__ __forceinline__ Pack<T, V> load_pack(const T* from, bool vectors) {
  if (vectors) return *reinterpret_cast<const Pack<T, V>*>(from);
  Pack<T, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.v[i] = from[i];
  return pack;
}

template <class T, int V>
__device__ __forceinline__ void store_pack(T* to, const Pack<T, V>& pack, bool vectors) {
  if (vectors) {
    *reinterpret_cast<Pack<T, V>*>(to) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = pack.v[i];
  }
}

// Rows of a group of channels in place: (row, c) starts at data + row * batch + c * channel.
template <class T>
struct Region {
  T* data;
  int64_t batch, channel;
  __device__ __forceinline__ T* at(int row, int c) const {
    return data + row * batch + c * channel;
  }
};

template <class T>
__device__ __forceinline__ Region<T> region(T* data, int64_t batch, int64_t channel, int64_t row0,
                                            int64_t c0) {
  return {data == nullptr ? data : data + row0 * batch + c0 * channel, batch, channel};
}

constexpr int kRegisterFile = 65536;  // registers per multiprocessor, for launch bounds

// Division of the work into blocks: `groups` of neighbouring channels times `slices` of `rows`
// samples.
struct Slices {
  int64_t groups, slices, rows;
};

// Slices of whole tiles; as many as give 24 warps to each of 128 multiprocessors.
inline Slices slices_of(int64_t batch, int64_t channels, int group, int tile, int warps) {
  Slices s{divide_up(channels, group), 1, 0};
  const int64_t tiles = batch > tile ? divide_up(batch, tile) : 1;
  const int64_t wanted = divide_up(128 * 24, s.groups * warps);
  s.rows = divide_up(tiles, wanted < tiles ? wanted : tiles) * tile;
  s.slices = batch > s.rows ? divide_up(batch, s.rows) : 1;
  return s;
}

// --- exact arithmetic ----------------------------------------------------------------------------

// Products of T (float or double) by multiply-adds on tiles in shared memory. Each lane computes
// kEach rows, each warp kColumns columns: all lanes read the same weights at once. For 36 locations
// in float32, 96 multiply-adds per lane need 2 + 12 loads of 16 bytes: at most 20 cycles of shared
// memory, against 24 for the multiply-adds.
template <class T, int N>
struct Exact {
  static constexpr int kSize = N;
  // Registers per thread of the backward kernel; with fewer, sums are spilled.
  static constexpr int kRegisters = sizeof(T) == 8 ? 255 : N == 64 ? 200 : 160;
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr int kColumns = N == 36 ? 12 : N == 64 ? 16 : 8;
  static constexpr int kEach = sizeof(T) == 8 || N == 64 ? 1 : 2;
  static constexpr int kRows = 32 * kEach;
  static constexpr int kChannels = sizeof(T) == 8 || N == 64 ? 1 : N == 36 ? 2 : 4;
  static constexpr int kWarps = N / kColumns;  // per channel
  static constexpr int kThreads = 32 * kWarps * kChannels;
  // An odd number of 16-byte units, so that the rows of eight lanes lie in different banks.
  static constexpr int kStride = N + (N / kVector % 2 == 0 ? kVector : 0);
  static constexpr int kTile = kChannels * kRows * kStride;
  static constexpr int kWeights = kChannels * N * N;
  static constexpr int kTallest = 4;                    // rows of grad_weight per thread
  static constexpr int kUnits = N / kTallest * kWarps;  // pieces of grad_weight
  static constexpr int kShares = 32 * kWarps / kUnits;  // threads per piece, sharing its batch
  static_assert(kShares > 0 && N * N <= 2 * kRows * kStride, "");
  using Weight = T;
  using Vector = Pack<T, kVector>;

  // Loads weights[channel][column][depth].
  static __device__ __forceinline__ void load_weights(T* weights, const Region<const T>& from,
                                                      int channels, bool transposed) {
#pragma unroll 2
    for (int i = int(threadIdx.x); i < kWeights; i += kThreads) {
      const int c = i / (N * N), r = i / N % N, k = i % N;
      const T w = c < channels ? from.at(r, c)[k] : T(0);
      weights[c * N * N + (transposed ? k * N + r : r * N + k)] = w;
    }
  }

  static __device__ __forceinline__ int my_channel() { return int(threadIdx.x) / (32 * kWarps); }
  static __device__ __forceinline__ int my_column() {
    return int(threadIdx.x) / 32 % kWarps * kColumns;
  }

  // Adds to sum[e][n] the product for row lane + 32 e and column my_column() + n.
  static __device__ __forceinline__ void product(const T* tile, const T* weights,
                                                 T (&sum)[kEach][kColumns]) {
    const T* rows = tile + (my_channel() * kRows + int(threadIdx.x) % 32) * kStride;
    const T* columns = weights + (my_channel() * N + my_column()) * N;
#pragma unroll 1
    for (int k = 0; k < N; k += kVector) {
      Vector x[kEach];
#pragma unroll
      for (int e = 0; e < kEach; ++e) {
        x[e] = *reinterpret_cast<const Vector*>(rows + 32 * e * kStride + k);
      }
#pragma unroll
      for (int n = 0; n < kColumns; ++n) {
        const Vector w = *reinterpret_cast<const Vector*>(columns + n * N + k);
#pragma unroll
        for (int e = 0; e < kEach; ++e) {
#pragma unroll
          for (int v = 0; v < kVector; ++v) sum[e][n] += x[e].v[v] * w.v[v];
        }
      }
    }
  }

  static __device__ __forceinline__ void to_tile(const T (&sum)[kEach][kColumns], T* tile) {
    T* rows = tile + (my_channel() * kRows + int(threadIdx.x) % 32) * kStride + my_column();
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
#pragma unroll
      for (int n = 0; n < kColumns; n += kVector) {
        Vector y;
#pragma unroll
        for (int v = 0; v < kVector; ++v) y.v[v] = sum[e][n + v];
        *reinterpret_cast<Vector*>(rows + 32 * e * kStride + n) = y;
      }
    }
  }

  // The piece of one thread of grad_weight: the sum over the batch of grad (rows) times input
  // (columns).
  struct GradWeight {
    T sum[kTallest][kColumns] = {};

    static __device__ __forceinline__ int me() { return int(threadIdx.x) % (32 * kWarps); }
    static __device__ __forceinline__ int my_row() { return me() % kUnits / kWarps * kTallest; }
    static __device__ __forceinline__ int my_column() { return me() % kUnits % kWarps * kColumns; }

    __device__ __forceinline__ void add(const T* grads, const T* inputs, int rows) {
      if (me() >= kUnits * kShares) return;
      const T* g_row = grads + my_channel() * kRows * kStride + my_row();
      const T* x_row = inputs + my_channel() * kRows * kStride + my_column();
#pragma unroll 1
      for (int r = me() / kUnits; r < rows; r += kShares) {
        T g[kTallest];
#pragma unroll
        for (int m = 0; m < kTallest; m += kVector) {
          const Vector pack = *reinterpret_cast<const Vector*>(g_row + r * kStride + m);
#pragma unroll
          for (int v = 0; v < kVector; ++v) g[m + v] = pack.v[v];
        }
#pragma unroll
        for (int n = 0; n < kColumns; n += kVector) {
          const Vector x = *reinterpret_cast<const Vector*>(x_row + r * kStride + n);
#pragma unroll
          for (int m = 0; m < kTallest; ++m) {
#pragma unroll
            for (int v = 0; v < kVector; ++v) sum[m][n + v] += g[m] * x.v[v];
          }
        }
      }
    }

    // Adds the shares in order in shared memory (`scratch` has the size of both tiles).
    template <class Write>
    __device__ __forceinline__ void write(T* scratch, Write write) {
      T* total = scratch + my_channel() * N * N;
      for (int share = 0; share < kShares; ++share) {
        __syncthreads();
        if (me() / kUnits != share) continue;
#pragma unroll
        for (int m = 0; m < kTallest; ++m) {
#pragma unroll
          for (int n = 0; n < kColumns; ++n) {
            T& to = total[(my_row() + m) * N + my_column() + n];
            to = share == 0 ? sum[m][n] : to + sum[m][n];
          }
        }
      }
      __syncthreads();
#pragma unroll 2
      for (int i = int(threadIdx.x); i < kWeights; i += kThreads) {
        write(i / (N * N), i % (N * N), scratch[i]);
      }
    }
  };
};

// --- tensor cores --------------------------------------------------------------------------------

// TF32 operands; for three products also the rounding remainders.
template <int kProducts, int kCount>
struct Tf32 {
  uint32_t high[kCount], low[kProducts == 3 ? kCount : 1];

  // `rounded`: the values are already TF32.
  __device__ __forceinline__ Tf32(const float (&x)[kCount], bool rounded = false) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      high[i] = rounded ? bit_cast<uint32_t>(x[i]) : to_tf32(x[i]);
      if constexpr (kProducts == 3) low[i] = to_tf32(x[i] - bit_cast<float>(high[i]));
    }
  }
};

template <int kProducts>
__device__ __forceinline__ void mma(float (&d)[4], const Tf32<kProducts, 4>& a,
                                    const Tf32<kProducts, 2>& b) {
  if constexpr (kProducts == 3) {
    mma_tf32(d, a.low, b.high);
    mma_tf32(d, a.high, b.low);
  }
  mma_tf32(d, a.high, b.high);
}

// Products of T (16-bit types, or float as kProducts TF32 products) on tensor cores.
//
// The depth may be summed in any order that is the same in both operands, and the columns may be
// permuted. Lane (g, q) = (lane / 4, lane % 4) therefore holds the four adjacent elements from 4q
// of each 16 elements of a row: a fragment consists of two vectors, of rows g and g + 8, and two
// result fragments are again two vectors. Rows move between global memory and registers directly.
template <class T, int N, int kProducts>
struct TensorCore {
  static constexpr int kSize = N;
  static constexpr bool kWide = sizeof(T) == 4;
  static constexpr int kVector = 4;
  static constexpr int kChunks = (N + 15) / 16;  // chunks of 16 locations; the last may be padded
  // Forward kernel. Neighbouring warps process neighbouring channels of the same 16 samples, so
  // that memory sectors shared by two rows are combined in the L1 cache.
  static constexpr int kForwardWarps = kProducts == 3 ? 4 : 8;
  static constexpr int kForwardThreads = 32 * kForwardWarps;
  static constexpr int kForwardChannels = N == 64 ? 1 : 8 / sizeof(T);
  // Registers per thread of the forward and the backward kernel; with fewer, sums are spilled.
  static constexpr int kForwardRegisters = kProducts == 3 ? 168 : 128;
  static constexpr int kForwardUnroll = kProducts == 3 ? 1 : kChunks;
  static constexpr int kBackwardUnroll = kWide && kProducts == 1 && N == 36 ? 1 : kChunks;
  static constexpr int kRegisters = (N == 64 ? 160 : 128) + (kProducts == 3 && N > 16 ? 64 : 0);
  // Backward kernel, whose tiles and weights together fit into 48 KiB.
  static constexpr int kRows = N == 16 ? 32 : N == 36 ? 48 : kWide ? 32 : 64;
  static constexpr int kChannels = N == 16 ? 4 : N == 36 && !kWide ? 2 : 1;
  static constexpr int kWarps = kChunks;  // per channel, each with 16 rows of grad_weight
  static constexpr int kThreads = 32 * kWarps * kChannels;
  // A multiple of 16 bytes for ldmatrix; rows are 8 or 24 banks, or an odd number of 16-byte units,
  // apart.
  static constexpr int kStride = (N + 8) / 8 * 8;
  static constexpr int kTile = kChannels * kRows * kStride;
  using Vector = Pack<T, 4>;
  using Weight = Vector;
  static constexpr int kFragments = 2 * kChunks * kChunks * 32;  // vectors per channel of weights
  static constexpr int kWeights = kChannels * kFragments;

  static __device__ __forceinline__ int g() { return int(threadIdx.x) % 32 / 4; }
  static __device__ __forceinline__ int q() { return int(threadIdx.x) % 4; }

  // Loads fragments[channel][chunk of the depth][8 columns][lane], rounded for a single TF32
  // product.
  static __device__ __forceinline__ void load_weights(Vector* fragments,
                                                      const Region<const T>& from, int channels,
                                                      bool transposed, int group = kChannels) {
    T* elements = reinterpret_cast<T*>(fragments);
#pragma unroll 2
    for (int i = int(threadIdx.x); i < group * kFragments * 4; i += int(blockDim.x)) {
      const int lane = i / 4 % 32, block = i / 128 % (2 * kChunks);
      const int k = i / (256 * kChunks) % kChunks * 16 + lane % 4 * 4 + i % 4;
      const int n = block / 2 * 16 + lane / 8 * 4 + block % 2 * 2 + lane / 4 % 2;
      const int c = i / (kFragments * 4);
      T w{};
      if (c < channels && n < N && k < N) {
        w = from.at(transposed ? k : n, c)[transposed ? n : k];
        if constexpr (kWide && kProducts == 1) w = bit_cast<float>(to_tf32(w));
      }
      elements[i] = w;
    }
  }

  // The vector of `chunk` in a row; zeros beyond the end of the row.
  static __device__ __forceinline__ Vector row_vector(const T* row, int chunk, bool exists,
                                                      bool vectors) {
    if (!exists || 16 * chunk + 4 * q() >= N) return Vector{};
    return load_pack<T, 4>(row + 16 * chunk + 4 * q(), vectors);
  }

  struct Rows {            // 16 rows, at the depth of one chunk
    Vector first, second;  // rows g and g + 8
  };

  // Adds to d[0] and d[1] the results of rows g and g + 8 in columns 16 column_chunk + 4q + {0, 1}
  // and + {2, 3}, in the layout of the tensor core.
  static __device__ __forceinline__ void add_product(float (&d)[2][4], const Rows& a, int chunk,
                                                     int column_chunk, const Vector* fragments) {
    const Vector* b = fragments + (2 * (chunk * kChunks + column_chunk)) * 32 + threadIdx.x % 32;
    if constexpr (kWide) {
#pragma unroll
      for (int s = 0; s < 4; s += 2) {
        const Tf32<kProducts, 4> rows(
            {a.first.v[s], a.second.v[s], a.first.v[s + 1], a.second.v[s + 1]});
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          const Vector w = b[32 * t];
          mma(d[t], rows, Tf32<kProducts, 2>({w.v[s], w.v[s + 1]}, kProducts == 1));
        }
      }
    } else {
      struct Words {
        uint32_t w[2];
      };
      const Words first = bit_cast<Words>(a.first), second = bit_cast<Words>(a.second);
      const uint32_t rows[4] = {first.w[0], second.w[0], first.w[1], second.w[1]};
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const Words w = bit_cast<Words>(b[32 * t]);
        mma<T>(d[t], rows, {w.w[0], w.w[1]});
      }
    }
  }

  // The results of row g (half 0) or g + 8 (half 1) in the four columns from 16 column_chunk + 4q.
  static __device__ __forceinline__ Pack<float, 4> results(const float (&d)[2][4], int half) {
    return {{d[0][2 * half], d[0][2 * half + 1], d[1][2 * half], d[1][2 * half + 1]}};
  }

  static __device__ __forceinline__ Vector narrow_pack(const Pack<float, 4>& x) {
    return {{narrow<T>(x.v[0]), narrow<T>(x.v[1]), narrow<T>(x.v[2]), narrow<T>(x.v[3])}};
  }

  // The 16 rows of one warp of grad_weight: the sum over the batch of grad (rows) times input
  // (columns).
  struct GradWeight {
    static constexpr int kBlocks = (N + 7) / 8;
    float sum[kBlocks][4] = {};

    static __device__ __forceinline__ int my_channel() { return int(threadIdx.x) / (32 * kWarps); }
    static __device__ __forceinline__ int my_row() { return int(threadIdx.x) / 32 % kWarps * 16; }

    // Padded columns read elements of the next row; they affect only results that are not written.
    __device__ __forceinline__ void add(const T* grads, const T* inputs, int rows) {
      const T* g_rows = grads + my_channel() * kRows * kStride + my_row();
      const T* x_rows = inputs + my_channel() * kRows * kStride;
      if constexpr (kWide) {
#pragma unroll 1
        for (int r = 0; r < rows; r += 8) {
          const T* gr = g_rows + (r + q()) * kStride + g();
          const T* xr = x_rows + (r + q()) * kStride + g();
          const Tf32<kProducts, 4> a({gr[0], gr[8], gr[4 * kStride], gr[4 * kStride + 8]});
#pragma unroll
          for (int t = 0; t < kBlocks; ++t) {
            mma(sum[t], a, Tf32<kProducts, 2>({xr[8 * t], xr[4 * kStride + 8 * t]}));
          }
        }
      } else {
        const int lane = int(threadIdx.x) % 32;
#pragma unroll 1
        for (int r = 0; r < rows; r += 16) {
          uint32_t a[4];
          load_transposed(a, g_rows + (r + lane / 16 * 8 + lane % 8) * kStride + lane / 8 % 2 * 8);
#pragma unroll
          for (int t = 0; t < kBlocks; t += 2) {
            uint32_t b[4];
            load_transposed(b, x_rows + (r + lane % 16) * kStride + 8 * t + lane / 16 * 8);
            mma<T>(sum[t], a, {b[0], b[1]});
            if (t + 1 < kBlocks) mma<T>(sum[t + 1 < kBlocks ? t + 1 : t], a, {b[2], b[3]});
          }
        }
      }
    }

    template <class Write>
    __device__ __forceinline__ void write(T*, Write write) {
#pragma unroll
      for (int t = 0; t < kBlocks; ++t) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = my_row() + g() + i / 2 * 8, column = 8 * t + 2 * q() + i % 2;
          if (row < N && column < N) write(my_channel(), row * N + column, sum[t][i]);
        }
      }
    }
  };
};

// --- forward -------------------------------------------------------------------------------------

// Loads `rows` and `channels` of a region into tile[channel][row][kStride]; zeros beyond them, and
// where `gate` is given and not positive. Each thread has kTogether loads in flight.
template <class Math, class T>
__device__ __forceinline__ void load_tile(T* tile, const Region<const T>& from,
                                          const Region<const T>& gate, int rows, int channels,
                                          bool vectors) {
  constexpr int V = Math::kVector, kVectors = Math::kSize / V, kRow = kVectors * Math::kChannels;
  constexpr int kTogether = 3;
#pragma unroll 1
  for (int i0 = int(threadIdx.x); i0 < kRow * Math::kRows; i0 += kTogether * Math::kThreads) {
    Pack<T, V> loaded[kTogether], open[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int i = i0 + j * Math::kThreads;
      const int r = i / kRow, c = i % kRow / kVectors, k = i % kVectors * V;
      loaded[j] = Pack<T, V>{};
      if (r < rows && c < channels) {
        loaded[j] = load_pack<T, V>(from.at(r, c) + k, vectors);
        if (gate.data != nullptr) open[j] = load_pack<T, V>(gate.at(r, c) + k, vectors);
      }
    }
#pragma unroll
    for (int j = 0; j < kTogether; ++j) {
      const int i = i0 + j * Math::kThreads;
      const int r = i / kRow, c = i % kRow / kVectors, k = i % kVectors * V;
      if (gate.data != nullptr && r < rows && c < channels) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if (!(widen(open[j].v[v]) > 0)) loaded[j].v[v] = T{};
        }
      }
      if (r < Math::kRows) {
        T* to = tile + (c * Math::kRows + r) * Math::kStride + k;
        *reinterpret_cast<Pack<T, V>*>(to) = loaded[j];
      }
    }
  }
}

// Stores `rows` and `channels` of a tile into a region.
template <class Math, class T>
__device__ __forceinline__ void store_tile(const T* tile, const Region<T>& to, int rows,
                                           int channels, bool vectors) {
  constexpr int V = Math::kVector, kVectors = Math::kSize / V, kRow = kVectors * Math::kChannels;
#pragma unroll 2
  for (int i = int(threadIdx.x); i < kRow * rows; i += Math::kThreads) {
    const int r = i / kRow, c = i % kRow / kVectors, k = i % kVectors * V;
    if (c < channels) {
      const T* from = tile + (c * Math::kRows + r) * Math::kStride + k;
      store_pack(to.at(r, c) + k, *reinterpret_cast<const Pack<T, V>*>(from), vectors);
    }
  }
}

// The work of a block: a group of channels and a slice of the batch.
struct Work {
  int64_t c0, first, last;
  int channels;

  __device__ __forceinline__ Work(int64_t block, const Slices& s, int64_t batch, int64_t all,
                                  int group) {
    c0 = block % s.groups * group;
    channels = all - c0 < group ? int(all - c0) : group;
    first = block / s.groups * s.rows;
    last = first + s.rows < batch ? first + s.rows : batch;
  }
  __device__ __forceinline__ int rows(int64_t row0, int tile) const {
    return last - row0 < tile ? int(last - row0) : tile;
  }
};

template <class T, int N>
__global__ void __launch_bounds__(Exact<T, N>::kThreads,
                                  kRegisterFile / (128 * Exact<T, N>::kThreads))
    forward_exact(LinearForward p, Slices s, bool vectors) {
  using Math = Exact<T, N>;
  alignas(16) __shared__ T tile[Math::kTile];
  alignas(16) __shared__ T weights[Math::kWeights];
  const T* bias = static_cast<const T*>(p.bias);
  for (int64_t block = blockIdx.x; block < s.groups * s.slices; block += gridDim.x) {
    const Work work(block, s, p.batch, p.channels, Math::kChannels);
    __syncthreads();  // the previous iteration may still be reading
    Math::load_weights(
        weights,
        region(static_cast<const T*>(p.weight), p.weight_row, p.weight_channel, 0, work.c0),
        work.channels, false);
    for (int64_t row0 = work.first; row0 < work.last; row0 += Math::kRows) {
      const int rows = work.rows(row0, Math::kRows);
      __syncthreads();
      load_tile<Math>(
          tile,
          region(static_cast<const T*>(p.input), p.input_batch, p.input_channel, row0, work.c0), {},
          rows, work.channels, vectors);
      __syncthreads();
      T sum[Math::kEach][Math::kColumns] = {};
      Math::product(tile, weights, sum);
      const bool biased = bias != nullptr && Math::my_channel() < work.channels;
#pragma unroll
      for (int n = 0; n < Math::kColumns; ++n) {
        const int64_t c = work.c0 + Math::my_channel();
        const T b = biased ? bias[c * p.bias_channel + Math::my_column() + n] : T(0);
#pragma unroll
        for (int e = 0; e < Math::kEach; ++e) {
          sum[e][n] += b;
          if (p.relu && sum[e][n] < 0) sum[e][n] = 0;  // preserves NaN
        }
      }
      __syncthreads();
      Math::to_tile(sum, tile);
      __syncthreads();
      store_tile<Math>(tile, region(static_cast<T*>(p.output), p.channels * N, N, row0, work.c0),
                       rows, work.channels, vectors);
    }
  }
}

template <class Math, class T, int N>
__global__ void __launch_bounds__(Math::kForwardThreads,
                                  kRegisterFile / (Math::kForwardRegisters * Math::kForwardThreads))
    forward_mma(LinearForward p, Slices s, bool vectors) {
  constexpr int kChannels = Math::kForwardChannels;
  __shared__ typename Math::Vector weights[kChannels * Math::kFragments];
  __shared__ float biases[kChannels * N];
  const T* bias = static_cast<const T*>(p.bias);
  const int my_channel = int(threadIdx.x) / 32 % kChannels;
  for (int64_t block = blockIdx.x; block < s.groups * s.slices; block += gridDim.x) {
    const Work work(block, s, p.batch, p.channels, kChannels);
    __syncthreads();  // the previous iteration may still be reading
    Math::load_weights(
        weights,
        region(static_cast<const T*>(p.weight), p.weight_row, p.weight_channel, 0, work.c0),
        work.channels, false, kChannels);
    for (int i = int(threadIdx.x); i < kChannels * N; i += Math::kForwardThreads) {
      const bool biased = bias != nullptr && i / N < work.channels;
      biases[i] = biased ? widen(bias[(work.c0 + i / N) * p.bias_channel + i % N]) : 0.f;
    }
    __syncthreads();
    if (my_channel >= work.channels) continue;
    const int64_t start = work.first + int(threadIdx.x) / 32 / kChannels * 16 + Math::g();
    auto from = region(static_cast<const T*>(p.input), p.input_batch, p.input_channel, start,
                       work.c0 + my_channel);
    auto to = region(static_cast<T*>(p.output), p.channels * N, N, start, work.c0 + my_channel);
    constexpr int kStep = Math::kForwardWarps / kChannels * 16;
    // `left`: rows from the first one of this lane on. All lanes of a warp make equally many
    // iterations.
    for (int64_t left = work.last - start; left + Math::g() > 0; left -= kStep) {
      typename Math::Rows x[Math::kChunks];
#pragma unroll
      for (int k = 0; k < Math::kChunks; ++k) {
        x[k].first = Math::row_vector(from.data, k, left > 0, vectors);
        x[k].second = Math::row_vector(from.at(8, 0), k, left > 8, vectors);
      }
#pragma unroll(Math::kForwardUnroll)
      for (int n = 0; n < Math::kChunks; ++n) {
        float d[2][4] = {};
#pragma unroll
        for (int k = 0; k < Math::kChunks; ++k) {
          Math::add_product(d, x[k], k, n, weights + my_channel * Math::kFragments);
        }
        hold(d);
        const int column = 16 * n + 4 * Math::q();
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (column >= N || left <= 8 * half) continue;
          Pack<float, 4> y = Math::results(d, half);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            y.v[i] += biases[my_channel * N + column + i];
            if (p.relu && y.v[i] < 0) y.v[i] = 0;  // preserves NaN
          }
          store_pack(to.at(8 * half, 0) + column, Math::narrow_pack(y), vectors);
        }
      }
      from.data += kStep * from.batch, to.data += kStep * to.batch;
    }
  }
}

// --- backward ------------------------------------------------------------------------------------

template <class T, int N>
__device__ __forceinline__ void grad_input(Exact<T, N>, const T* grads, T* scratch,
                                           const T* weights, const Region<T>& to, int rows,
                                           int channels, bool vectors) {
  using Math = Exact<T, N>;
  T sum[Math::kEach][Math::kColumns] = {};
  Math::product(grads, weights, sum);
  __syncthreads();  // all reads of the inputs, which the results overwrite
  Math::to_tile(sum, scratch);
  __syncthreads();
  store_tile<Math>(scratch, to, rows, channels, vectors);
}

template <class T, int N, int kProducts>
__device__ __forceinline__ void grad_input(TensorCore<T, N, kProducts>, const T* grads, T*,
                                           const Pack<T, 4>* weights, const Region<T>& to, int rows,
                                           int channels, bool vectors) {
  using Math = TensorCore<T, N, kProducts>;
  const int warp = int(threadIdx.x) / 32, channel = warp / Math::kWarps;
  const int column_chunk = warp % Math::kWarps, column = 16 * column_chunk + 4 * Math::q();
  if (channel >= channels) return;
#pragma unroll 1
  for (int r = 0; r < rows; r += 16) {
    const T* from = grads + (channel * Math::kRows + r + Math::g()) * Math::kStride;
    float d[2][4] = {};
#pragma unroll(Math::kBackwardUnroll)
    for (int k = 0; k < Math::kChunks; ++k) {
      const typename Math::Rows a = {Math::row_vector(from, k, true, true),
                                     Math::row_vector(from + 8 * Math::kStride, k, true, true)};
      Math::add_product(d, a, k, column_chunk, weights + channel * Math::kFragments);
    }
    hold(d);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = r + Math::g() + 8 * half;
      if (row < rows && column < N) {
        store_pack(to.at(row, channel) + column, Math::narrow_pack(Math::results(d, half)),
                   vectors);
      }
    }
  }
}

// `partial`: sums per slice, (slices, channels, N * N + N), weight before bias; null for one slice.
template <class Math, class T, int N>
__global__ void __launch_bounds__(Math::kThreads,
                                  kRegisterFile / (Math::kRegisters * Math::kThreads))
    backward_square(LinearBackward p, Slices s, bool vectors, acc_t<T>* partial) {
  using A = acc_t<T>;
  // 16 more elements: padded columns of the last row are read beyond the tile.
  alignas(16) __shared__ T tiles[2 * Math::kTile + 16];
  alignas(16) __shared__ typename Math::Weight weights[Math::kWeights];
  T* const grads = tiles;
  T* const inputs = tiles + Math::kTile;
  for (int64_t block = blockIdx.x; block < s.groups * s.slices; block += gridDim.x) {
    const Work work(block, s, p.batch, p.channels, Math::kChannels);
    __syncthreads();  // the previous iteration may still be reading
    if (p.grad_input != nullptr) {
      Math::load_weights(
          weights,
          region(static_cast<const T*>(p.weight), p.weight_row, p.weight_channel, 0, work.c0),
          work.channels, true);
    }
    typename Math::GradWeight grad_weight;
    A bias_sum = 0;  // for location threadIdx.x % N of channel threadIdx.x / N

    for (int64_t row0 = work.first; row0 < work.last; row0 += Math::kRows) {
      const int rows = work.rows(row0, Math::kRows);
      __syncthreads();
      load_tile<Math>(
          grads,
          region(static_cast<const T*>(p.grad_output), p.grad_batch, p.grad_channel, row0, work.c0),
          region(static_cast<const T*>(p.output), p.output_batch, p.output_channel, row0, work.c0),
          rows, work.channels, vectors);
      if (p.grad_weight != nullptr) {
        load_tile<Math>(
            inputs,
            region(static_cast<const T*>(p.input), p.input_batch, p.input_channel, row0, work.c0),
            {}, rows, work.channels, vectors);
      }
      __syncthreads();
      if (p.grad_weight != nullptr) grad_weight.add(grads, inputs, rows);
      if (p.grad_bias != nullptr && threadIdx.x < Math::kChannels * N) {
        const T* column = grads + threadIdx.x / N * (Math::kRows * Math::kStride) + threadIdx.x % N;
#pragma unroll 4
        for (int r = 0; r < rows; ++r) bias_sum += widen(column[r * Math::kStride]);
      }
      if (p.grad_input != nullptr) {
        grad_input(Math(), grads, inputs, weights,
                   region(static_cast<T*>(p.grad_input), p.channels * N, N, row0, work.c0), rows,
                   work.channels, vectors);
      }
    }

    const int64_t slice = block / s.groups;
    const auto write = [&](int channel, int i, A value) {
      if (channel >= work.channels) return;
      const int64_t c = work.c0 + channel;
      if (partial != nullptr) {
        partial[(slice * p.channels + c) * (N * N + N) + i] = value;
      } else if (i < N * N) {
        static_cast<T*>(p.grad_weight)[c * N * N + i] = narrow<T>(value);
      } else {
        static_cast<T*>(p.grad_bias)[c * N + i - N * N] = narrow<T>(value);
      }
    };
    if (p.grad_bias != nullptr && threadIdx.x < Math::kChannels * N) {
      write(int(threadIdx.x) / N, N * N + int(threadIdx.x) % N, bias_sum);
    }
    if (p.grad_weight != nullptr) grad_weight.write(tiles, write);
  }
}

// Adds the sums of the slices in order.
template <class T>
__global__ void __launch_bounds__(256)
    add_slices(LinearBackward p, int64_t slices, const acc_t<T>* partial) {
  const int64_t weights = p.n_out * p.n_in, size = weights + p.n_out;
  for (int64_t c = blockIdx.x; c < p.channels; c += gridDim.x) {
    for (int64_t i = threadIdx.x; i < size; i += 256) {
      if ((i < weights ? p.grad_weight : p.grad_bias) == nullptr) continue;
      acc_t<T> sum = 0;
      for (int64_t s = 0; s < slices; ++s) sum += partial[(s * p.channels + c) * size + i];
      if (i < weights) {
        static_cast<T*>(p.grad_weight)[c * weights + i] = narrow<T>(sum);
      } else {
        static_cast<T*>(p.grad_bias)[c * p.n_out + i - weights] = narrow<T>(sum);
      }
    }
  }
}

// --- any size ------------------------------------------------------------------------------------

constexpr int kTileSide = 64;  // rows and columns per block
constexpr int kDepth = 16;     // depth of the operands in shared memory
constexpr int kEach = 4;       // rows and columns per thread
constexpr int kTileThreads = kTileSide / kEach * kTileSide / kEach;

// One matrix per channel: at(c, row, column).
template <class T>
struct View {
  const T* data;
  int64_t channel, row, column;
  __device__ __forceinline__ const T* at(int64_t c, int64_t r, int64_t k) const {
    return data + c * channel + r * row + k * column;
  }
};

// out (rows, columns) = a (rows, depth) b (depth, columns) + bias (columns), per channel. `gate`
// has the shape of a: where it is not positive, a is taken as 0. `row_sums` receives the sums of
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

template <class T>
__global__ void __launch_bounds__(kTileThreads) multiply(Product<T> p) {
  using A = acc_t<T>;
  constexpr int kRows = kTileSide, kColumns = kTileSide, kThreads = kTileThreads;
  // Rows are multiples of 16 bytes: the kEach elements of a thread are one load (two for double).
  alignas(16) __shared__ A a_tile[kDepth][kRows + kEach];
  alignas(16) __shared__ A b_tile[kDepth][kColumns];
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
        // Neighbouring threads read along the contiguous dimension: the depth or the rows.
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
        if (p.relu && y < 0) y = 0;  // preserves NaN
        p.out[c * p.out_channel + row * p.out_row + column] = narrow<T>(y);
      }
    }
  }
}

// --- selection and launch ------------------------------------------------------------------------

template <class Math>
struct Kind {
  using type = Math;
};

template <int N>
struct Size {};

// Calls f(Kind<Math>, T(), Size<N>) if there is a kernel of the exact size, else otherwise(T()).
template <class T, int N, class F, class Otherwise>
auto with_math(Products products, F f, Otherwise otherwise) {
  if constexpr (sizeof(T) == 2) {
    return f(Kind<TensorCore<T, N, 1>>(), T(), Size<N>());
  } else if constexpr (sizeof(T) == 4) {
    if (products == Products::tf32) return f(Kind<TensorCore<T, N, 1>>(), T(), Size<N>());
    if (products == Products::tf32x3) return f(Kind<TensorCore<T, N, 3>>(), T(), Size<N>());
    return f(Kind<Exact<T, N>>(), T(), Size<N>());
  } else if constexpr (N < 64) {
    return f(Kind<Exact<T, N>>(), T(), Size<N>());
  } else {
    return otherwise(T());  // 32 KiB of weights leave no space for the tiles
  }
}

template <class T, class Params, class F, class Otherwise>
auto with_size(const Params& p, F f, Otherwise otherwise) {
  if (p.n_in == p.n_out) {
    switch (p.n_in) {
      case 16: return with_math<T, 16>(p.products, f, otherwise);
      case 36: return with_math<T, 36>(p.products, f, otherwise);
      case 64: return with_math<T, 64>(p.products, f, otherwise);
    }
  }
  return otherwise(T());
}

template <class Params, class F, class Otherwise>
auto choose(const Params& p, F f, Otherwise otherwise) {
  switch (p.dtype) {
    case DType::f64: return with_size<double>(p, f, otherwise);
    case DType::bf16: return with_size<BFloat16>(p, f, otherwise);
    case DType::f16: return with_size<Half>(p, f, otherwise);
    default: return with_size<float>(p, f, otherwise);
  }
}

// True if rows can be accessed in vectors of four elements (two for float64).
template <class T>
bool vectors_at(const void* pointer, int64_t stride = 0, int64_t other_stride = 0) {
  constexpr int64_t elements = sizeof(T) == 8 ? 2 : 4;
  return aligned(pointer, elements * int64_t(sizeof(T))) && stride % elements == 0 &&
         other_stride % elements == 0;
}

template <class T>
void start(const Product<T>& p, void* stream) {
  const int64_t column_tiles = p.columns > 0 ? divide_up(p.columns, kTileSide) : 1;
  const int64_t blocks = p.channels * divide_up(p.rows, kTileSide) * column_tiles;
  CEK_LAUNCH(multiply<T>, grid_of(blocks), kTileThreads, stream, p);
}

template <class T>
const T* of(const void* pointer) {
  return static_cast<const T*>(pointer);
}

template <class T>
void forward_any(const LinearForward& p, void* stream) {
  Product<T> q{};
  q.channels = p.channels, q.rows = p.batch, q.columns = p.n_out, q.depth = p.n_in;
  q.a = {of<T>(p.input), p.input_channel, p.input_batch, 1};
  q.b = {of<T>(p.weight), p.weight_channel, 1, p.weight_row};
  q.bias = of<T>(p.bias), q.bias_channel = p.bias_channel, q.relu = p.relu;
  q.out = static_cast<T*>(p.output), q.out_channel = p.n_out, q.out_row = p.channels * p.n_out;
  start(q, stream);
}

template <class T>
void backward_any(const LinearBackward& p, void* stream) {
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
    q.columns = p.grad_weight != nullptr ? p.n_in : 0;  // 0: only the sums of the rows
    q.a = {of<T>(p.grad_output), p.grad_channel, 1, p.grad_batch};
    q.gate = {of<T>(p.output), p.output_channel, 1, p.output_batch};
    q.b = {of<T>(p.input), p.input_channel, p.input_batch, 1};
    q.out = static_cast<T*>(p.grad_weight);
    q.out_channel = p.n_out * p.n_in, q.out_row = p.n_in;
    q.row_sums = static_cast<T*>(p.grad_bias);
    start(q, stream);
  }
}

template <class T, int N, int kProducts>
void forward_square(Kind<TensorCore<T, N, kProducts>>, const LinearForward& p, bool vectors,
                    void* stream) {
  using Math = TensorCore<T, N, kProducts>;
  const Slices s = slices_of(p.batch, p.channels, Math::kForwardChannels,
                             16 * Math::kForwardWarps / Math::kForwardChannels,
                             Math::kForwardWarps);
  CEK_LAUNCH((forward_mma<Math, T, N>), grid_of(s.groups * s.slices), Math::kForwardThreads, stream,
             p, s, vectors);
}

template <class T, int N>
void forward_square(Kind<Exact<T, N>>, const LinearForward& p, bool vectors, void* stream) {
  using Math = Exact<T, N>;
  const Slices s = slices_of(p.batch, p.channels, Math::kChannels, Math::kRows,
                             Math::kThreads / 32);
  CEK_LAUNCH((forward_exact<T, N>), grid_of(s.groups * s.slices), Math::kThreads, stream, p, s,
             vectors);
}

template <class Math>
Slices backward_slices(const LinearBackward& p) {
  return slices_of(p.batch, p.channels, Math::kChannels, Math::kRows, Math::kThreads / 32);
}

template <class Math, class T, int N>
void backward(Kind<Math>, T, Size<N>, const LinearBackward& p, void* workspace, void* stream) {
  const bool vectors = vectors_at<T>(p.grad_output, p.grad_batch, p.grad_channel) &&
                       vectors_at<T>(p.output, p.output_batch, p.output_channel) &&
                       vectors_at<T>(p.input, p.input_batch, p.input_channel) &&
                       vectors_at<T>(p.grad_input);
  const Slices s = backward_slices<Math>(p);
  const bool sums = p.grad_weight != nullptr || p.grad_bias != nullptr;
  auto* partial = sums && s.slices > 1 ? static_cast<acc_t<T>*>(workspace) : nullptr;
  CEK_LAUNCH((backward_square<Math, T, N>), grid_of(s.groups * s.slices), Math::kThreads, stream, p,
             s, vectors, partial);
  if (partial != nullptr) {
    CEK_LAUNCH(add_slices<T>, grid_of(p.channels), 256, stream, p, s.slices, partial);
  }
}

}  // namespace

size_t workspace_bytes(const LinearForward&) { return 0; }

size_t workspace_bytes(const LinearBackward& p) {
  return choose(
      p,
      [&](auto kind, auto element, auto) -> size_t {
        using Math = typename decltype(kind)::type;
        if (p.grad_weight == nullptr && p.grad_bias == nullptr) return 0;
        const Slices s = backward_slices<Math>(p);
        const int64_t sums = s.slices * p.channels * (p.n_out * p.n_in + p.n_out);
        return s.slices > 1 ? size_t(sums) * sizeof(acc_t<decltype(element)>) : 0;
      },
      [](auto) -> size_t { return 0; });
}

const char* run(const LinearForward& p, void*, void* stream) {
  choose(
      p,
      [&](auto kind, auto element, auto) {
        using T = decltype(element);
        const bool vectors = vectors_at<T>(p.input, p.input_batch, p.input_channel) &&
                             vectors_at<T>(p.output);
        forward_square(kind, p, vectors, stream);
      },
      [&](auto element) { forward_any<decltype(element)>(p, stream); });
  return launch_error();
}

const char* run(const LinearBackward& p, void* workspace, void* stream) {
  choose(
      p,
      [&](auto kind, auto element, auto size) {
        backward(kind, element, size, p, workspace, stream);
      },
      [&](auto element) { backward_any<decltype(element)>(p, stream); });
  return launch_error();
}

}  // namespace cuda
}  // namespace cekernels
