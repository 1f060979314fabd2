package chromium

import (
	"bytes"
	"cmp"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"slices"
)

// small makes a PNG smaller, for pictures of pages that are kept: its colours become the 256 that are most frequent.
func small(data []byte) ([]byte, error) {
	decoded, err := png.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	picture := image.NewRGBA(decoded.Bounds())
	draw.Draw(picture, picture.Bounds(), decoded, decoded.Bounds().Min, draw.Src)
	counts := map[[4]byte]int{}
	for pixel := range slices.Chunk(picture.Pix, 4) {
		counts[[4]byte(pixel)]++
	}
	colours := make([][4]byte, 0, len(counts))
	for colour := range counts {
		colours = append(colours, colour)
	}
	slices.SortFunc(colours, func(a, b [4]byte) int { return cmp.Or(counts[b]-counts[a], bytes.Compare(a[:], b[:])) })
	var palette color.Palette
	for _, c := range colours[:min(len(colours), 256)] {
		palette = append(palette, color.RGBA{c[0], c[1], c[2], c[3]})
	}
	nearest := make(map[[4]byte]uint8, len(colours))
	for _, c := range colours {
		nearest[c] = uint8(palette.Index(color.RGBA{c[0], c[1], c[2], c[3]}))
	}
	paletted := image.NewPaletted(picture.Bounds(), palette)
	at := 0
	for pixel := range slices.Chunk(picture.Pix, 4) {
		paletted.Pix[at] = nearest[[4]byte(pixel)]
		at++
	}
	var out bytes.Buffer
	err = (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, paletted)
	return out.Bytes(), err
}
