package picture

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"tapestry.dev/tapestry/test/steps"
)

// drawn is a text of a picture with the position of its left end or, for numbers, its right end.
type drawn struct {
	x, y        float64
	class, text string
}

// read returns the texts of a picture. All of them must be inside of the picture.
func read(t *testing.T, picture io.Reader) []drawn {
	t.Helper()
	var all []drawn
	var width, height float64
	number := func(e xml.StartElement, name string) float64 {
		for _, a := range e.Attr {
			if a.Name.Local == name {
				v, err := strconv.ParseFloat(a.Value, 64)
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
		}
		return 0
	}
	for d := xml.NewDecoder(picture); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		switch {
		case ok && e.Name.Local == "svg":
			width, height = number(e, "width"), number(e, "height")
		case ok && e.Name.Local == "text":
			var text string
			x := drawn{x: number(e, "x"), y: number(e, "y")}
			for _, a := range e.Attr {
				if a.Name.Local == "class" {
					x.class = a.Value
				}
			}
			if err := d.DecodeElement(&text, &e); err != nil {
				t.Fatal(err)
			}
			x.text = text
			all = append(all, x)
		}
	}
	for _, x := range all {
		long := float64(utf8.RuneCountInString(x.text)) * glyph
		left, right := x.x, x.x+long
		if x.class == "num" {
			left, right = x.x-long, x.x
		}
		if left < 0 || right > width || x.y > height {
			t.Errorf("%q is from %.0f to %.0f at %.0f, outside of %.0f x %.0f", x.text, left, right, x.y, width, height)
		}
	}
	return all
}

func TestWrite(t *testing.T) {
	long := strings.TrimSpace(strings.Repeat("<many> & words ", 30))
	d := Demo{
		Command: "make demo", Closing: "All of it worked, in 1.0 s.",
		Steps: []Step{{"short", true, "fine", 7}, {"stock-wireguard", true, long, 99999}, {"broken", false, "why", 3}},
		Table: [][]string{{"path", "TCP stream"}, {"ClusterIP, across nodes", "3.29 Gbit/s"}},
	}
	var b bytes.Buffer
	if err := Write(&b, d); err != nil {
		t.Fatal(err)
	}
	all := read(t, &b)
	var texts []string
	rows := map[float64]string{} // what is on a line, without the last of its texts
	for _, x := range all {
		texts = append(texts, x.text)
		rows[x.y] += x.class + " "
	}
	joined := strings.Join(texts, " ")
	for _, want := range []string{"$ make demo", "✔ short 7 ms fine", "✔ stock-wireguard 99999 ms " + long, "✘ broken 3 ms why", "path TCP stream", "3.29 Gbit/s", d.Closing} {
		if !strings.Contains(joined, want) {
			t.Errorf("%q is not in the picture: %s", want, joined)
		}
	}
	for _, x := range all {
		if x.text == "why" && x.class != "bad" || x.text == "fine" && x.class != "" {
			t.Errorf("%q is drawn as %q", x.text, x.class)
		}
	}
	if !slices.IsSortedFunc(all, func(a, b drawn) int { return int(a.y - b.y) }) {
		t.Error("the lines are out of order")
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		text string
		n    int
		want []string
	}{
		{"", 5, []string{""}}, {"a b", 5, []string{"a b"}}, {"aaa bbb", 5, []string{"aaa", "bbb"}}, {"aaaaaaa b", 5, []string{"aaaaa", "aa b"}},
		{"µµµ µ", 5, []string{"µµµ µ"}}, {"x aaaaaaaaaaa", 5, []string{"x", "aaaaa", "aaaaa", "a"}},
	} {
		if got := wrap(c.text, c.n); !slices.Equal(got, c.want) {
			t.Errorf("%q in %d: got %q, want %q", c.text, c.n, got, c.want)
		}
	}
}

// TestReadme: the README's picture shows a demo with all current steps, all of which worked.
func TestReadme(t *testing.T) {
	f, err := os.Open("../../../docs/demo.svg")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	for _, x := range read(t, f) {
		switch x.class {
		case "name":
			names = append(names, x.text)
		case "bad":
			t.Errorf("the picture shows that something did not work: %s", x.text)
		}
	}
	want := []string{"up"}
	for _, s := range steps.All() {
		want = append(want, s.Name)
	}
	if want = append(want, "bench"); !slices.Equal(names, want) {
		t.Errorf("the picture shows %v, and the demo has %v: run 'make picture'", names, want)
	}
}
