// Matrix tiles in software, for processors without them: what AMX's instructions are said to do, one number at a time.
#pragma once
#include <cstring>
#include <immintrin.h>
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_release
#define _tile_zero(tile) std::memset(emulated[tile].rows, 0, 1024)
#define _tile_loadd(tile, base, stride) emulated[tile].load((const char*)(base), stride)
#define _tile_stream_loadd(tile, base, stride) emulated[tile].load((const char*)(base), stride)
#define _tile_stored(tile, base, stride) emulated[tile].store((char*)(base), stride)
#define _tile_dpbf16ps(sums, a, b) emulated[sums].add(emulated[a], emulated[b])
#define _tile_release() ((void)0)

struct EmulatedTile {
    char rows[16][64];
    void load(const char* base, long stride) {
        for (int i = 0; i < 16; i++) std::memcpy(rows[i], base + i * stride, 64);
    }
    void store(char* base, long stride) const {
        for (int i = 0; i < 16; i++) std::memcpy(base + i * stride, rows[i], 64);
    }
    float value(int row, int column) const {
        unsigned short bits;
        std::memcpy(&bits, rows[row] + 2 * column, 2);
        const unsigned wide = unsigned(bits) << 16;
        float out;
        std::memcpy(&out, &wide, 4);
        return out;
    }
    void add(const EmulatedTile& a, const EmulatedTile& b) {
        for (int m = 0; m < 16; m++)
            for (int n = 0; n < 16; n++) {
                float sum;
                std::memcpy(&sum, rows[m] + 4 * n, 4);
                for (int k = 0; k < 32; k++) sum += a.value(m, k) * b.value(k / 2, 2 * n + k % 2);
                std::memcpy(rows[m] + 4 * n, &sum, 4);
            }
    }
};
static thread_local EmulatedTile emulated[8];
