package plugin

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/visible/visibletest"
)

// ADD refuses each of these names, which try to escape from the place of a name, with the specification's code. The
// agent is not asked, and nothing is made.
func TestNamesWithTricks(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("x", 4<<10)
	pod := func(namespace, name string) string {
		return "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + namespace + ";K8S_POD_NAME=" + name
	}
	for name, c := range map[string]struct {
		container, args string
		want            string
	}{
		"a path as namespace":     {"c1", pod("../../etc", "web"), `"../../etc" is no name`},
		"a path as name":          {"c1", pod("default", "../web"), `"../web" is no name`},
		"one name in another":     {"c1", pod("default/web", "x"), `"default/web" is no name`},
		"a line break":            {"c1", pod("default", "web\nlevel=ERROR"), `"web\\nlevel=ERROR" is no name`},
		"an escape":               {"c1", pod("default", "web\x1b[2J"), `"web\\x1b[2J" is no name`},
		"no UTF-8":                {"c1", pod("default", "web\xff"), `is no name`},
		"4 KiB":                   {"c1", pod("default", long), "4096 bytes are too long"},
		"a pod without an object": {"c1", pod("cni.net", "web"), "is no namespace of Kubernetes"},
		"a path as UID":           {"c1", pod("default", "web") + ";K8S_POD_UID=../u", `"../u" is no name`},
		"a path as container":     {"../c1", pod("default", "web"), "containerID"},
		"a container of 4 KiB":    {long, pod("default", "web"), "4096 bytes are too long"},
		"a container with a line": {"c1\n", pod("default", "web"), "containerID"},
	} {
		t.Run(name, func(t *testing.T) {
			p := w.pod(c.container)
			p.args = c.args
			p.fails("ADD", types.ErrInvalidEnvironmentVariables, strings.ReplaceAll(c.want, `\\`, `\`))
			if p.has("eth0") || w.count() != 0 {
				t.Errorf("eth0 %v, %v", p.has("eth0"), w.all())
			}
		})
	}
	// DEL accepts any name: an earlier agent may have attached the pod.
	p := w.pod("c1")
	p.args = pod("../..", "web\n")
	p.works("DEL")
}

// The plugin checks the file at the namespace's path before it opens the file: opening a FIFO would block, and opening
// a device may have effects.
func TestNamespaceThatIsNone(t *testing.T) {
	w := newWorld(t)
	dir := t.TempDir()
	make := func(name string, f func(path string) error) string {
		path := filepath.Join(dir, name)
		if err := f(path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	p := w.pod("c1")
	real := p.path
	fifo := make("fifo", func(path string) error { return unix.Mkfifo(path, 0o600) })
	for name, path := range map[string]string{
		"fifo":                    fifo,
		"link to a fifo":          make("link-to-fifo", func(path string) error { return os.Symlink(fifo, path) }),
		"file":                    make("file", func(path string) error { return os.WriteFile(path, nil, 0o600) }),
		"directory":               dir,
		"device":                  "/dev/zero",
		"of mounts":               "/proc/self/ns/mnt",
		"ours":                    "/proc/self/ns/net",
		"link to ours":            make("link-to-ours", func(path string) error { return os.Symlink("/proc/self/ns/net", path) }),
		"link to itself":          make("loop", func(path string) error { return os.Symlink(path, path) }),
		"line breaks and escapes": filepath.Join(dir, visibletest.Mark+"\x1b[2J\nx"),
	} {
		p.path = path
		begin := time.Now()
		_, err := p.run("ADD")
		if err == nil {
			t.Errorf("%s: it was attached", name)
			continue
		}
		if took := time.Since(begin); took > addTime {
			t.Errorf("%s: it took %s", name, took)
		}
		visibletest.Check(t, name, visibletest.Mark+err.Msg+err.Details)
	}
	if w.count() != 0 {
		t.Errorf("left: %v", w.all())
	}
	// A symbolic link to the pod's namespace is allowed.
	p.path = make("link", func(path string) error { return os.Symlink(real, path) })
	p.works("ADD")
	if err := p.inspect(); err != nil {
		t.Error(err)
	}
	p.works("DEL")
}

// A false result of an earlier plugin leads to an error of the specification, not to a crash.
func TestPrevResultThatLies(t *testing.T) {
	w := newWorld(t)
	p := w.pod("c1")
	good := p.works("ADD")
	for _, lie := range []string{
		`{"cniVersion":"1.1.0","interfaces":[null]}`,
		`{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[null]}`,
		`{"cniVersion":"1.1.0","routes":[null]}`,
		`{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/99"}]}`,
		`{"cniVersion":"1.1.0","interfaces":"eth0"}`,
		`{"cniVersion":"0.2.0","ip4":7}`,
		`[]`, `"x"`, `{"cniVersion":7}`, `{}`,
		`{"cniVersion":"1.1.0","interfaces":[{"name":"../../x\u001b[2J","mac":"\u0000","sandbox":"\n"}]}`,
	} {
		p.config["prevResult"] = json.RawMessage(lie)
		for _, command := range []string{"ADD", "CHECK"} {
			// run fails the test for anything but an error of the specification, such as a panic.
			if _, err := p.run(command); err == nil && command == "CHECK" {
				t.Errorf("CHECK believes %s", lie)
			}
		}
	}
	p.config["prevResult"] = json.RawMessage(good)
	p.works("CHECK")
	p.works("DEL")
}

// Each of these ports and rates in a network configuration has the given result.
func TestConfigurationWithRubbish(t *testing.T) {
	w := newWorld(t)
	p := w.pod("c1")
	port := func(host, container any, proto, ip string) map[string]any {
		return map[string]any{"portMappings": []any{map[string]any{"hostPort": host, "containerPort": container, "protocol": proto, "hostIP": ip}}}
	}
	for name, c := range map[string]struct {
		runtime any
		code    uint
		want    string
	}{
		"port 70000":          {port(70000, 80, "tcp", ""), types.ErrDecodingFailure, "portMappings.hostPort"},
		"port -1":             {port(-1, 80, "tcp", ""), types.ErrDecodingFailure, "portMappings.hostPort"},
		"container port 1e9":  {port(80, 1e9, "tcp", ""), types.ErrDecodingFailure, "portMappings.containerPort"},
		"a port of words":     {port("80", 80, "tcp", ""), types.ErrDecodingFailure, "portMappings.hostPort"},
		"a negative rate":     {map[string]any{"bandwidth": map[string]any{"egressRate": -1}}, types.ErrDecodingFailure, "egressRate"},
		"a rate of a bit":     {map[string]any{"bandwidth": map[string]any{"egressRate": 1}}, types.ErrInternal, "less than a byte"},
		"an address with %":   {map[string]any{"ips": []string{"fe80::1%eth0"}}, types.ErrInvalidNetworkConfig, "runtimeConfig.ips"},
		"an address and more": {map[string]any{"ips": []string{"10.1.0.1; rm"}}, types.ErrInvalidNetworkConfig, "runtimeConfig.ips"},
	} {
		p.config["runtimeConfig"] = c.runtime
		out, err := p.run("ADD")
		if err == nil || err.Code != c.code || !strings.Contains(err.Msg+" "+err.Details, c.want) {
			t.Errorf("%s: %s %+v; want code %d, %q", name, out, err, c.code, c.want)
		}
	}
	if p.has("eth0") || w.count() != 0 {
		t.Errorf("eth0 %v, %v", p.has("eth0"), w.all())
	}
	// The kernel accepts the largest rate that a configuration can express.
	p.config["runtimeConfig"] = map[string]any{"bandwidth": map[string]any{"egressRate": uint64(1<<64 - 1), "egressBurst": uint64(1<<64 - 1)}}
	p.works("ADD")
	p.works("DEL")
}
