package translate_test

import (
	"slices"
	"strings"
	"testing"

	"tapestry.dev/tapestry/addressing/addresstest"
	"tapestry.dev/tapestry/kube/codec"
	"tapestry.dev/tapestry/kube/translate"
	"tapestry.dev/tapestry/services"
)

// TestNoNodePorts: the addresses of all nodes are judged, each by what is the first of its own Node.
func TestNoNodePorts(t *testing.T) {
	objs, err := codec.Decode("x.yaml", []byte(`
{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.9}, {type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: "2001:db8::1"}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2}, status: {addresses: [{type: InternalIP, address: "2001:db8::2"}, {type: InternalIP, address: 10.9.0.2}, {type: InternalIP, address: 192.0.2.2}]}}
`))
	if err != nil {
		t.Fatal(err)
	}
	var x translate.Translator
	for texts, want := range map[string]string{
		"": "", "primary": "192.0.2.1 192.0.2.2", "192.0.2.0/24": "10.9.0.2", "2001:db8::1/128": "2001:db8::2",
	} {
		places, err := services.ParsePlaces(strings.Fields(texts))
		if err != nil {
			t.Fatal(err)
		}
		got := x.Translate(objs, translate.Options{Node: "n1", NodePorts: &places}).Services.NoNodePorts
		if !slices.Equal(got, addresstest.Addrs(strings.Fields(want)...)) {
			t.Errorf("%q: %v, want %s", texts, got, want)
		}
	}
}
