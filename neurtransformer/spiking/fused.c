/* The arithmetic of a few tokens in one call each, in place of dozens of small tensor operations.

   Number for number what `neuron.py` and `attention/race.py` compute with tensors, which is also
   what runs where this file was not compiled; tests/test_fused.py compares the two. `fused.py` is
   the other side of the calls, and checks what it passes. Floats are single precision and must not
   be contracted to fused multiply-adds (-ffp-contract=off, in setup.py). */

#include <math.h>
#include <stdint.h>
#include <string.h>

/* One build for all processors of a kind: the faster instructions are chosen when it is loaded. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define FASTEST __attribute__((target_clones("avx2", "default")))
#else
#define FASTEST
#endif

/* REACH, END = 2^END_BITS and the 8 of MEAN_BITS in `normalise` are those of `codes.py`, CURRENT and
   RANGE those of `coding.snap_current`, MOST_DIM that of `fused.py`. */
enum { LEVELS = 256, REACH = 128, END = 1 << 12, CURRENT = 1 << 14, RANGE = 4, MOST_DIM = 256 };

static inline float at_most(float x, float limit) { return x > limit ? limit : x; }
static inline float at_least(float x, float limit) { return x < limit ? limit : x; }

/* `CodingNeuron.counts(CodingNeuron.total(x))` behind the activation: values x (rows, channels) to
   counts. center: (channels,), or NULL for zeros. divisor: (channels,), the value of a spike, or of
   an analogue neuron's threshold. */
FASTEST void counts(const float *restrict x, const float *restrict center,
                    const float *restrict divisor, float *restrict out, int64_t rows,
                    int64_t channels, float most, int is_signed, int analogue) {
    for (int64_t row = 0; row < rows; row++, x += channels, out += channels) {
        for (int64_t c = 0; c < channels; c++) {
            float z = (center ? x[c] - center[c] : x[c]) / divisor[c];
            if (analogue) {
                z = at_least(at_most(z, RANGE), -RANGE);
                z = rintf(z * CURRENT) / CURRENT * most;
            }
            out[c] = is_signed ? copysignf(at_most(floorf(fabsf(z) + 0.5f), most), z)
                               : at_least(at_most(floorf(z + 0.5f), most), 0.0f);
        }
    }
}

/* Levels of one query's scores at `past` token neurons, and how many neurons are at each; see
   `levels_of`. A neuron that is not there has level -REACH - 1, and is not counted. */
FASTEST static void levels_of(const int16_t *restrict query, const int8_t *restrict synapses,
                              const uint8_t *restrict there, int64_t past, int64_t dim, float width,
                              int16_t *restrict level, int32_t *restrict number) {
    const int32_t half = (int32_t)floorf(width / 2.0f);
    memset(number, 0, LEVELS * sizeof *number);
    for (int64_t j = 0; j < past; j++) {
        int32_t score = 0;
        for (int64_t c = 0; c < dim; c++) score += query[c] * synapses[j * dim + c];
        float exact = floorf((float)(score + half) / width);
        level[j] = (int16_t)at_least(at_most(exact, REACH - 1), -REACH);
        if (there && !there[j]) level[j] = -REACH - 1;
        else number[level[j] + REACH]++;
    }
}

/* The race of the neurons, level by level from the highest on: what their listener holds at its
   end, d, and the level in which it ends; see `heard_in`. */
static int32_t race(const int32_t *number, int *last) {
    int32_t sum = 0;
    int level = REACH - 1;
    while (level >= -REACH && !number[level + REACH]) level--;
    if (level < -REACH) return 0;
    for (;; level--) {
        int32_t fired = level >= -REACH ? number[level + REACH] : 0;
        sum = level & 1 ? 2 * sum + 3 * fired : sum + 2 * fired;
        if (sum >= END) break;
    }
    *last = level;
    return sum;
}

/* Read sums o of the values, weighted by spikes, to means; see `base.normalise`. */
static void normalise(const int32_t *read, int32_t sum, const float *reciprocals, int bits,
                      int64_t dim, float *out) {
    const int32_t divisor = (int32_t)((uint32_t)sum << bits) + 1;
    int length = 0;
    while (divisor >> length) length++;
    const float limit = 32767.0f;
    const float unit = ldexpf(1.0f, 15 - length), grain = ldexpf(1.0f, bits - 14);
    const int index = (length > 8 ? divisor >> (length - 8) : divisor << (8 - length)) & 127;
    for (int64_t c = 0; c < dim; c++) {
        float scaled = floorf((float)read[c] * unit + 0.5f);
        scaled = at_least(at_most(scaled, limit), -limit);
        out[c] = floorf(scaled * reciprocals[index] * grain + 0.5f) * (1.0f / 256.0f);
    }
}

/* The races of `asking` queries of each of `heads` heads of token neurons, and what is read.

   query: counts (heads, asking, dim). synapses, values: (heads, past, dim), int8, or values int16
   where `wide`. width: of a level, (heads,). there: (heads / heads_a_text, past), 0 for a neuron
   that is padding, or NULL. room: past numbers. Out: mean values (heads, asking, dim). */
FASTEST void races(const float *restrict query, const int8_t *restrict synapses,
                   const void *restrict values, const float *restrict width,
                   const uint8_t *restrict there, const float *restrict reciprocals,
                   int16_t *restrict room, float *restrict out, int64_t heads, int64_t heads_a_text,
                   int64_t asking, int64_t past, int64_t dim, int wide, int bits) {
    int16_t counts[MOST_DIM];
    int32_t read[MOST_DIM], number[LEVELS];
    for (int64_t head = 0; head < heads; head++) {
        const int8_t *key = synapses + head * past * dim;
        const uint8_t *seen = there ? there + head / heads_a_text * past : 0;
        for (int64_t i = 0; i < asking; i++, query += dim, out += dim) {
            for (int64_t c = 0; c < dim; c++) counts[c] = (int16_t)query[c];
            levels_of(counts, key, seen, past, dim, width[head], room, number);
            int last = REACH;
            const int32_t sum = race(number, &last);
            memset(read, 0, sizeof read);
            for (int64_t j = 0; j < past; j++) {
                const int level = room[j];
                if (level < last || level < -REACH) continue;
                /* octaves before the end; the levels of an octave are an even and an odd one */
                const int octaves = ((level + 4 * REACH) >> 1) - ((last + 4 * REACH) >> 1);
                const int32_t weight = (level & 1 ? 3 : 2) << octaves;
                const int64_t at = (head * past + j) * dim;
                if (wide)
                    for (int64_t c = 0; c < dim; c++)
                        read[c] += weight * ((const int16_t *)values)[at + c];
                else
                    for (int64_t c = 0; c < dim; c++)
                        read[c] += weight * ((const int8_t *)values)[at + c];
            }
            normalise(read, sum, reciprocals, bits, dim, out);
        }
    }
}
