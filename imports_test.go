package tapestry

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "tapestry.dev/tapestry/"

// stackRoom is where the gVisor stack of a node is.
const stackRoom = "netstack/stack"

// owners says which folder alone may import what, and why. Heavy dependencies each belong to one top-level folder, so
// that the layout is the architecture.
var owners = []struct{ path, folder, why string }{
	{"gvisor.dev/gvisor", stackRoom, "no other package knows what the stack is made of"},
	{"github.com/vishvananda/netlink", "netstack/tap", "interfaces, addresses and routes are made in one place"},
	{"github.com/songgao/water", "netstack/tap", "TAPs are made in one place, with their ioctls"},
	{"golang.zx2c4.com/wireguard", "overlay", "the seam netstack.Link knows nothing of the engine"},
	{"k8s.io/", "kube", "Kubernetes types stop at one door"},
	{"sigs.k8s.io/", "kube", "Kubernetes types stop at one door"},
	{"go.yaml.in/yaml/", "kube/codec", "one decoder says what a file means, and what is wrong with it"},
	{"github.com/containernetworking/", "kube", "CNI is part of the conversation with Kubernetes"},
	{"github.com/urfave/cli/", "cmd", "only commands have flags"},
	{"github.com/prometheus/", "cmd/tapestry/metrics", "the data plane counts, the agent tells"},
	{"github.com/pion/", "netstack", "another SCTP, at both ends of what tests translate"},
	{"github.com/pires/go-proxyproto", "services/nodeport", "who opens connections for clients outside says so"},
	{"github.com/mdlayher/", "announce", "link layers are spoken with outside of the agent, by a process of its own"},
	{"github.com/osrg/gobgp/", "announce", "routers are spoken with outside of the agent, by a process of its own"},
	{"github.com/miekg/dns", "services/dns", "DNS messages are the DNS server's business"},
	{"google.golang.org/protobuf", "hubble", "protocol buffers are what Hubble's tools speak, and nobody else here"},
	{"google.golang.org/grpc", "test/hubble", "it is 6 MB in every agent and keeper: the little of it that is needed, hubble/rpc serves"},
	{"github.com/cilium/", "test/hubble", "only a test has Hubble's own module"},
}

// strangers must not import one another; node joins them by small interfaces and funcs.
var strangers = []string{"netstack", "overlay", "services", "ingress"}

// leaves may be imported by everyone and import nothing of ours.
var leaves = []string{"addressing", "announce", "balance", "counter", "fdpass", "netstack/memo", "netstack/packet", "roll", "share", "underway", "visible"}

// mayNot are further directions that would turn the house around.
var mayNot = []struct{ folder, path, why string }{
	{"kube", module + "cmd", "commands import everything, nothing imports commands"},
	{"kube", module + "node", "kube says what a node is to be, cmd brings the node to it"},
	{"node", module + "cmd", "commands import everything, nothing imports commands"},
	{"node", module + "kube", "the data plane knows no Kubernetes"},
	{"netstack", module + "node", "the parts do not know the whole"},
	{"overlay", module + "node", "the parts do not know the whole"},
	{"services", module + "node", "the parts do not know the whole"},
	{"ingress", module + "node", "the parts do not know the whole"},
	{"netstack", module + "kube", "the data plane knows no Kubernetes"},
	{"overlay", module + "kube", "the data plane knows no Kubernetes"},
	{"kube/codec", module + "kube/translate", "what a file says is decoded without knowing what it is for"},
	{"services", module + "kube", "the data plane knows no Kubernetes"},
	{"ingress", module + "kube", "the data plane knows no Kubernetes"},
	{"netstack/flow", module + "netstack/tap", "the flow table knows no devices"},
}

func TestImports(t *testing.T) {
	files := 0
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		// A module of its own shares no dependencies with this one.
		if _, err := os.Stat(filepath.Join(path, "go.mod")); d.IsDir() && path != "." && err == nil {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			imported, _ := strconv.Unquote(spec.Path.Value)
			if why := forbidden(filepath.ToSlash(path), imported); why != "" {
				t.Errorf("%s imports %s: %s", path, imported, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Fatalf("looked at only %d files: is the test in the root of the module?", files)
	}
}

// forbidden says why the file at path must not import what it does; "" when it may.
func forbidden(path, imported string) string {
	dir, isTest := filepath.ToSlash(filepath.Dir(path)), strings.HasSuffix(path, "_test.go")
	for _, o := range owners {
		if strings.HasPrefix(imported, o.path) && !within(dir, o.folder) && !excepted(dir, isTest, o.path) {
			return "only " + o.folder + " may: " + o.why
		}
	}
	for _, m := range mayNot {
		if within(dir, m.folder) && strings.HasPrefix(imported, m.path) && !strings.HasPrefix(imported, module+m.folder) {
			return m.why
		}
	}
	if own, ok := strings.CutPrefix(imported, module); ok {
		switch {
		case slices.Contains(leaves, dir) && own != dir: // external tests of it import it
			return dir + " is a leaf"
		case slices.Contains(leaves, own):
			return ""
		}
	}
	for _, a := range strangers {
		for _, b := range strangers {
			if a != b && within(dir, a) && within(strings.TrimPrefix(imported, module), b) && strings.HasPrefix(imported, module) {
				return a + " and " + b + " are joined by node, through an interface or a func"
			}
		}
	}
	return ""
}

// excepted are the places outside that may import what an owner holds. A pod in memory has a stack of its own to answer
// with. Tests and the lab look at interfaces past us. The lab plays the control plane of Kubernetes with its objects,
// rendered manifests are read as the API server reads them, and tests on a real control plane make its objects.
// End-to-end tests and the load generator ask DNS servers as a stranger would, ours and those they are compared with.
func excepted(dir string, isTest bool, owned string) bool {
	switch owned {
	case "gvisor.dev/gvisor":
		return dir == "netstack/netstacktest"
	case "github.com/vishvananda/netlink":
		return within(dir, "test") || isTest
	case "k8s.io/":
		return within(dir, "test/lab") || within(dir, "deploy/render") || within(dir, "test/apiserver")
	case "github.com/miekg/dns":
		return within(dir, "test") || dir == "bench/load" || isTest
	}
	return false
}

// closures say what must not be linked into a package, however far away it is imported.
var closures = []struct {
	pkg     string
	without []string
	why     string
}{
	{"cmd/tapestry", []string{module + "bench", module + "test", module + "announce/link", module + "announce/bgp"}, "the product ships nothing of the laboratory, and announcers are processes of their own"},
	{"cmd/tapestry-l2", []string{"gvisor.dev/", "k8s.io/", "golang.zx2c4.com/", "github.com/osrg/", "github.com/urfave/"}, "who has NET_RAW has nothing else, and is small"},
	{"cmd/tapestry-bgp", []string{"gvisor.dev/", "k8s.io/", "golang.zx2c4.com/", "github.com/urfave/"}, "who talks with routers has nothing of the node"},
	{"cmd/tapestry-cni", []string{module + "bench", module + "test", "gvisor.dev/", "k8s.io/"}, "the plugin is started for every pod, and has to be small"},
	{"cmd/tapestry/keeper", []string{module + "kube", module + "overlay", module + "services", module + "ingress", module + "cmd/tapestry/agent", "gvisor.dev/", "k8s.io/", "golang.zx2c4.com/"},
		"the keeper outlives agents because it knows nothing of what they are made of"},
	{"localapi", []string{module + "kube", module + "node", module + "netstack", module + "overlay", module + "services", module + "ingress", module + "cmd"},
		"whoever asks an agent needs nothing of what it is made of"},
}

// TestLinked looks at all that a package is linked with.
func TestLinked(t *testing.T) {
	for _, c := range closures {
		out, err := exec.Command("go", "list", "-deps", "./"+c.pkg).Output()
		if err != nil {
			t.Fatalf("go list -deps ./%s: %v", c.pkg, err)
		}
		linked := strings.Fields(string(out))
		if len(linked) < 20 {
			t.Errorf("%s is linked with %d packages only: does the test look at the right thing?", c.pkg, len(linked))
		}
		for _, path := range linked {
			for _, prefix := range c.without {
				if within(path, strings.TrimSuffix(prefix, "/")) {
					t.Errorf("%s is linked with %s: %s; 'go list -deps' and 'go mod why' show the way", c.pkg, path, c.why)
				}
			}
		}
	}
}

func within(dir, folder string) bool { return dir == folder || strings.HasPrefix(dir, folder+"/") }

func TestForbidden(t *testing.T) {
	for _, c := range []struct {
		path, imported string
		allowed        bool
	}{
		{stackRoom + "/stack.go", "gvisor.dev/gvisor/pkg/tcpip", true},
		{"netstack/node.go", "gvisor.dev/gvisor/pkg/tcpip", false},
		{"netstack/node_test.go", "gvisor.dev/gvisor/pkg/tcpip", false},
		{"netstack/tap/create.go", "github.com/vishvananda/netlink", true},
		{"netstack/hosttap/hosttap.go", "github.com/vishvananda/netlink", false},
		{"netstack/hosttap/hosttap_test.go", "github.com/vishvananda/netlink", true},
		{"test/userns/init.go", "github.com/vishvananda/netlink", true},
		{"overlay/mesh.go", "gvisor.dev/gvisor/pkg/tcpip", false},
		{"overlay/mesh.go", module + "netstack/packet", true},
		{"overlay/mesh.go", module + "netstack", false},
		{"services/dns/server.go", module + "services", true},
		{"kube/translate/x.go", module + "services", true},
		{"services/table.go", "k8s.io/api/core/v1", false},
		{"netstack/packet/x.go", module + "netstack/flow", false},
		{"services/nodeport/remember.go", module + "netstack/memo", true},
		{"netstack/memo/memo.go", module + "netstack/packet", false},
		{"addressing/x.go", module + "netstack/packet", false},
		{"services/table.go", module + "addressing", true},
		{"kube/codec/value.go", "go.yaml.in/yaml/v3", true},
		{"kube/manifests/watch.go", "go.yaml.in/yaml/v3", false},
		{"kube/codec/decode.go", module + "kube", true},
		{"kube/codec/decode.go", module + "kube/translate", false},
		{"kube/cni/server.go", module + "netstack/keeper", true},
		{"services/dns/server.go", module + "share", true},
		{"share/limit.go", module + "netstack/packet", false},
		{"node/parts.go", module + "overlay", true},
		{"node/parts.go", module + "kube/translate", false},
		{"services/table.go", module + "node", false},
		{"kube/pods/pods.go", module + "node", false},
		{"fdpass/serve.go", module + "netstack/packet", false},
		{"services/dns/server.go", module + "counter", true},
	} {
		if got := forbidden(c.path, c.imported) == ""; got != c.allowed {
			t.Errorf("forbidden(%s, %s): allowed %v, want %v", c.path, c.imported, got, c.allowed)
		}
	}
}
