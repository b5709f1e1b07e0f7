package plugin

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"tapestry.dev/tapestry/kube/cni/install"
)

// TestWithLibrary uses the installer's configuration with libcni, the library that runtimes use.
func TestWithLibrary(t *testing.T) {
	w := newWorld(t)
	image, bin, conf := t.TempDir(), t.TempDir(), t.TempDir()
	b, err := os.ReadFile(executable())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(image, Name), b, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := install.Install(install.Options{BinDir: bin, ConfDir: conf, Source: image, Socket: w.socket}); err != nil {
		t.Fatal(err)
	}
	t.Setenv(pluginVar, "1")
	list, err := libcni.ConfListFromFile(filepath.Join(conf, install.ConfigFile))
	if err != nil {
		t.Fatal(err)
	}
	if list.CNIVersion != "1.1.0" {
		t.Errorf("the library speaks %s", list.CNIVersion)
	}
	runtime := libcni.NewCNIConfigWithCacheDir([]string{bin}, t.TempDir(), nil)
	if err := runtime.GetStatusNetworkList(t.Context(), list); err != nil {
		t.Error(err)
	}
	p, q := w.pod("c1"), w.pod("c2")
	of := func(p *pod) *libcni.RuntimeConf {
		return &libcni.RuntimeConf{
			ContainerID: p.container, NetNS: p.path, IfName: "eth0",
			Args:           [][2]string{{"K8S_POD_NAMESPACE", "default"}, {"K8S_POD_NAME", p.container}},
			CapabilityArgs: map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}},
		}
	}
	for _, p := range []*pod{p, q} {
		if _, err := runtime.AddNetworkList(t.Context(), list, of(p)); err != nil {
			t.Fatal(err)
		}
		if err := p.inspect(); err != nil {
			t.Error(err)
		}
		if err := runtime.CheckNetworkList(t.Context(), list, of(p)); err != nil {
			t.Error(err)
		}
	}
	if got := w.got("c1").PortMappings; len(got) != 1 || got[0].HostPort != 8080 {
		t.Errorf("%+v", got)
	}
	// With GC, the library deletes the attachments that it knows of and that are not valid.
	valid := []types.GCAttachment{{ContainerID: "c1", IfName: "eth0"}}
	if err := runtime.GCNetworkList(t.Context(), list, &libcni.GCArgs{ValidAttachments: valid}); err != nil {
		t.Fatal(err)
	}
	if network, got := w.gc(); network != "tapestry" || len(got) != 1 || got[0].ContainerID != "c1" {
		t.Errorf("collected %s but %v", network, got)
	}
	if q.has("eth0") || !p.has("eth0") {
		t.Error("the library did not delete what is not valid, or more than that")
	}
	for range 2 {
		if err := runtime.DelNetworkList(t.Context(), list, of(p)); err != nil {
			t.Error(err)
		}
	}
	if w.count() != 0 || p.has("eth0") {
		t.Errorf("left: %v", w.all())
	}
}
