package chart

import (
	"bytes"
	"encoding/xml"
	"image"
	"image/color"
	"image/png"
	"io"
	"slices"
	"strings"
	"testing"

	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/vg"

	"tapestry.dev/tapestry/bench"
)

// example returns a chart with shared cases, one with a cost and one with quantiles, and two cases of a single subject.
func example() Chart {
	row := func(figure, subject string, value float64, unit, baseline string) bench.Row {
		r := bench.Row{Suite: "pod", Case: figure, Subject: subject, Value: value, Unit: unit, Min: value * 0.8, Max: value * 1.3, N: 5}
		if baseline != "" {
			r.Baseline, r.BaselineValue, r.Ratio = baseline, value/0.86, 0.86
		}
		return r
	}
	return Chart{
		Title: "pod", About: "pod to pod on one node",
		Rows: []bench.Row{
			row("tcp stream x1", "same-node", 8.87, "Gbit/s", "null-loop"),
			row("tcp stream x1", "null-loop", 10.4, "Gbit/s", ""),
			row("tcp stream x1", "kernel-bridge", 20.8, "Gbit/s", ""),
			row("tcp stream x1 cpu", "same-node", 0.27, "s/Gbit", "null-loop"),
			row("tcp rr p50", "same-node", 95.3, "us", "null-loop"),
			row("tcp rr p50", "null-loop", 122, "us", ""),
			row("tcp rr p99", "same-node", 268, "us", "null-loop"),
			row("load 10000 x 10", "agent", 4263, "ms", ""),
			row("load 100 x 10", "agent", 63, "ms", ""),
			row("nothing", "agent", 0, "B", ""),
		},
		Colour: Palette([]string{"same-node", "cluster-ip"}, []string{"null-loop", "kernel-bridge"}),
	}
}

func render(t *testing.T, c Chart, format string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := c.Write(&b, format); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The SVG is well-formed XML, and has every subject with its figure and its ratio.
func TestSVG(t *testing.T) {
	var said []string
	for d := xml.NewDecoder(bytes.NewReader(render(t, example(), "svg"))); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, ok := token.(xml.CharData); ok {
			said = append(said, strings.TrimSpace(string(text)))
		}
	}
	all := strings.Join(said, "\n")
	for _, want := range []string{
		"pod to pod on one node", "Gbit/s", "tcp stream x1", "tcp rr p50",
		"same-node  8.87, 0.27 s/Gbit cpu, 0.86 of null-loop", "null-loop  10.4", "kernel-bridge  20.8",
		"same-node  95.3, p99 268, 0.86 of null-loop", "load 10000 x 10  4263", "load 100 x 10  63.0", "nothing  0.00",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q in\n%s", want, all)
		}
	}
}

// A long line of text takes no room from the bars.
func TestLongWords(t *testing.T) {
	c := example()
	c.Rows = c.Rows[:3]
	short := longest(decode(t, render(t, c, "png")), c.Colour("kernel-bridge"))
	for range 5 {
		another := c.Rows[0]
		another.Baseline = strings.Repeat("a-long-name-", 6)
		c.Rows = append(c.Rows, another)
	}
	if svg := render(t, c, "svg"); bytes.Contains(svg, []byte("NaN")) {
		t.Error("something has no place")
	}
	if got := longest(decode(t, render(t, c, "png")), c.Colour("kernel-bridge")); got != short {
		t.Errorf("the longest bar is %d pixels long, want %d as without", got, short)
	}
}

func decode(t *testing.T, b []byte) image.Image {
	t.Helper()
	img, err := png.Decode(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// The PNG shows each bar in its subject's colour, longer where the figure is larger.
func TestPNG(t *testing.T) {
	c := example()
	c.Rows = c.Rows[:3]
	img := decode(t, render(t, c, "png"))
	if img.Bounds().Dx() != 1000 {
		t.Errorf("%d pixels wide, want 1000", img.Bounds().Dx())
	}
	last := 0
	for _, subject := range []string{"same-node", "null-loop", "kernel-bridge"} {
		n := longest(img, c.Colour(subject))
		if n <= last {
			t.Errorf("the bar of %s is %d pixels long, want more than %d", subject, n, last)
		}
		last = n
	}
}

// longest returns the length of the longest horizontal run of a colour, in pixels.
func longest(img image.Image, c color.Color) int {
	best := 0
	for y := range img.Bounds().Dy() {
		run := 0
		for x := range img.Bounds().Dx() {
			if color.RGBAModel.Convert(img.At(x, y)) != color.RGBAModel.Convert(c) {
				run = 0
				continue
			}
			run++
			best = max(best, run)
		}
	}
	return best
}

func TestPanels(t *testing.T) {
	var got []string
	for _, p := range example().panels() {
		var names []string
		for _, b := range p.bars {
			names = append(names, b.name)
		}
		got = append(got, p.title+" in "+p.unit+": "+strings.Join(names, ", "))
	}
	want := []string{
		"tcp stream x1 in Gbit/s: same-node, null-loop, kernel-bridge", "tcp rr p50 in us: same-node, null-loop",
		"agent, ms in ms: load 10000 x 10, load 100 x 10", "agent, B in B: nothing",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("panels\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestTicks(t *testing.T) {
	for high, want := range map[float64]string{
		1: "0 0.2 0.4 0.6 0.8 1", 4: "0 1 2 3 4", 19.9: "0 2 4 6 8 10 12 14 16 18", 20: "0 5 10 15 20", 0.05: "0 0.01 0.02 0.03 0.04 0.05", 110000: "0 20000 40000 60000 80000 100000",
	} {
		var got []string
		for _, tick := range ticks(0, high) {
			got = append(got, tick.Label)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("to %v: %q, want %q", high, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	for _, tt := range []struct{ longest, whisker, want float64 }{
		{0, 0, 1}, {100, 100, 102}, {100, 150, 153}, {100, 5000, 204},
	} {
		if got := span(tt.longest, tt.whisker); got != tt.want {
			t.Errorf("bars of %v, whiskers of %v: %v, want %v", tt.longest, tt.whisker, got, tt.want)
		}
	}
	if span(0, 5) <= 0 {
		t.Error("an axis shows nothing")
	}
}

func TestWrap(t *testing.T) {
	words := []string{"cluster-ip  8.87", "p99 268", "0.86 of null-loop"}
	f := sans(textSize)
	face := font.DefaultCache.Lookup(f, f.Size)
	whole := face.Width(strings.Join(words, ", ") + ",")
	for _, tt := range []struct {
		room vg.Length
		want string
	}{
		{whole, "cluster-ip  8.87, p99 268, 0.86 of null-loop"},
		{whole - 1, "cluster-ip  8.87, p99 268,\n0.86 of null-loop"},
		{0, "cluster-ip  8.87,\np99 268,\n0.86 of null-loop"},
	} {
		if got := strings.Join(wrap(words, tt.room, f), "\n"); got != tt.want {
			t.Errorf("room for %v: %q, want %q", tt.room, got, tt.want)
		}
	}
	if strings.Join(words, "") != "cluster-ip  8.87p99 2680.86 of null-loop" {
		t.Errorf("the words were changed: %q", words)
	}
}

// Panels neither overlap nor leave the page.
func TestArrange(t *testing.T) {
	var panels []panel
	for _, bars := range []int{1, 9, 2, 2, 3} {
		panels = append(panels, panel{bars: slices.Repeat([]bar{{text: []string{"a", "b"}}}, bars)})
	}
	p := arrange(panels)
	ends := map[int]vg.Length{0: head, 1: head}
	var order []int
	for _, at := range p.places {
		if at.top < ends[at.column] || at.top+at.panel.height() > p.height {
			t.Errorf("a panel is at %v in column %d, which ends at %v, of a page of %v", at.top, at.column, ends[at.column], p.height)
		}
		ends[at.column] = at.top + at.panel.height()
		order = append(order, at.column)
	}
	if !slices.Equal(order, []int{0, 1, 0, 0, 0}) {
		t.Errorf("columns %v", order)
	}
}

// Colours of neighbours differ, and do not depend on what else is drawn.
func TestPalette(t *testing.T) {
	ours, others := []string{"a", "b", "c", "d", "e", "f", "g", "h"}, []string{"q", "r", "s", "t", "u", "v", "w", "x"}
	colour := Palette(ours, others)
	seen := map[color.Color]string{}
	for _, name := range append(ours, others...) {
		c := colour(name)
		if other, ok := seen[c]; ok {
			t.Errorf("%s and %s have the same colour", name, other)
		}
		seen[c] = name
		if c != Palette(ours, others)(name) {
			t.Errorf("the colour of %s changes", name)
		}
	}
	if colour("stranger") == nil {
		t.Error("a stranger has no colour")
	}
}

func TestWriteRefuses(t *testing.T) {
	if err := example().Write(io.Discard, "gif"); err == nil || !strings.Contains(err.Error(), "svg") {
		t.Errorf("another format: %v", err)
	}
	if err := (Chart{Title: "empty"}).Write(io.Discard, "svg"); err == nil {
		t.Error("no rows were drawn")
	}
}
