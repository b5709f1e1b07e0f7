package lab

import (
	"strings"
	"testing"
)

func TestManifest(t *testing.T) {
	const in = "containers:\n- name: a\n  image: x/tapestry:1\n  args:\n  - --api-server=https://192.0.2.1:6443\n- image: \"x/tapestry:1\"\n  args: [\"--api-server=https://192.0.2.1:6443\"]\n"
	out, err := forThisCluster([]byte(in), "https://172.30.0.11:6443")
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.ReplaceAll(in, "192.0.2.1", "172.30.0.11"); string(out) != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	if tag, err := imageOf(out); err != nil || tag != "x/tapestry:1" {
		t.Errorf("image %q, %v", tag, err)
	}
	if _, err := imageOf([]byte(in + "- image: y\n")); err == nil {
		t.Error("two images are one")
	}
	if _, err := imageOf([]byte("kind: Service\n")); err == nil {
		t.Error("an image out of nowhere")
	}
	if _, err := forThisCluster([]byte("kind: Service\n"), "https://172.30.0.11:6443"); err == nil {
		t.Error("nobody asks the API server, and nobody minds")
	}
}
