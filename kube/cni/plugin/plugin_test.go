package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"tapestry.dev/tapestry/kube/cni"
	"tapestry.dev/tapestry/netstack/packet"
	"tapestry.dev/tapestry/netstack/tap"
	"tapestry.dev/tapestry/test/awake"
)

// run starts the plugin as a runtime does.
func (p *pod) run(command string) (out string, failure *types.Error) {
	p.t.Helper()
	stdin, err := json.Marshal(p.config)
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(executable())
	cmd.Env = append(os.Environ(), pluginVar+"=1", "CNI_COMMAND="+command, "CNI_PATH=/opt/cni/bin")
	if command != "VERSION" && command != "GC" && command != "STATUS" {
		cmd.Env = append(cmd.Env, "CNI_CONTAINERID="+p.container, "CNI_NETNS="+p.path, "CNI_IFNAME=eth0", "CNI_ARGS="+p.args)
	}
	var stdout bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &stdout, os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		failure = &types.Error{}
		if err := json.Unmarshal(stdout.Bytes(), failure); err != nil {
			p.t.Fatalf("%s: exit code %d with %q", command, exit.ExitCode(), stdout.String())
		}
		return "", failure
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return stdout.String(), nil
}

func (p *pod) inspect() error {
	p.t.Helper()
	got := p.got(p.container)
	var mac packet.MAC
	if _, err := fmt.Sscanf(got.MAC, "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]); err != nil {
		p.t.Fatal(err)
	}
	return tap.Inspect(p.ns, tap.PodConfig(got.Addrs, mac, got.MTU))
}

func TestAdd(t *testing.T) {
	w := newWorld(t)
	p := w.pod("c1")
	p.config["dns"] = map[string]any{"nameservers": []string{"10.96.0.10"}}
	p.config["runtimeConfig"] = map[string]any{
		"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "127.0.0.1"}},
	}
	first := p.works("ADD")
	if err := p.inspect(); err != nil {
		t.Error(err)
	}
	var r types100.Result
	if err := json.Unmarshal([]byte(first), &r); err != nil {
		t.Fatal(err)
	}
	if r.CNIVersion != "1.1.0" || len(r.Interfaces) != 1 || r.Interfaces[0].Name != "eth0" || r.Interfaces[0].Mac != "0a:58:0a:01:00:01" ||
		r.Interfaces[0].Mtu != 1400 || r.Interfaces[0].Sandbox != p.path || len(r.IPs) != 2 || r.IPs[0].Address.String() != "10.1.0.1/32" ||
		*r.IPs[0].Interface != 0 || r.IPs[0].Gateway.String() != "169.254.1.1" || r.IPs[1].Address.String() != "fd00:1::1/128" ||
		r.IPs[1].Gateway.String() != "fe80::1" || len(r.Routes) != 2 || r.Routes[0].Dst.String() != "0.0.0.0/0" ||
		r.Routes[1].Dst.String() != "::/0" || r.DNS.Nameservers[0] != "10.96.0.10" {
		t.Errorf("%s", first)
	}
	got := w.got("c1")
	if got.Namespace != "default" || got.Name != "web-c1" || got.UID != "u-c1" || got.Network != "net" || got.IfName != "eth0" || got.Netns != p.path ||
		!reflect.DeepEqual(got.PortMappings, []cni.PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"}}) {
		t.Errorf("%+v", got)
	}
	// A runtime that did not get the answer repeats the ADD.
	if again := p.works("ADD"); again != first || w.added() != 1 {
		t.Errorf("%s after %d adds, first %s", again, w.added(), first)
	}
	// The interface is no longer as it should be.
	if err := tap.SetMTU(p.ns, "eth0", 1300); err != nil {
		t.Fatal(err)
	}
	if again := p.works("ADD"); again != first || w.added() != 2 {
		t.Errorf("%s after %d adds, first %s", again, w.added(), first)
	}
	if err := p.inspect(); err != nil {
		t.Error(err)
	}
	for range 2 {
		p.works("DEL")
		if p.has("eth0") || w.count() != 0 {
			t.Errorf("left: eth0 %v, %v", p.has("eth0"), w.all())
		}
	}
}

// ADD answers in the version of the request.
func TestVersions(t *testing.T) {
	w := newWorld(t)
	versions := version.All.SupportedVersions()
	if !slices.Contains(versions, "0.1.0") || !slices.Contains(versions, "1.1.0") {
		t.Fatal(versions)
	}
	for i, v := range versions {
		p := w.pod(fmt.Sprint("c", i))
		p.config["cniVersion"] = v
		out := p.works("ADD")
		r, err := version.NewResult(v, []byte(out))
		if err != nil {
			t.Errorf("%s: %v in %s", v, err, out)
			continue
		}
		now, err := types100.NewResultFromResult(r)
		if err != nil || len(now.IPs) != 2 {
			t.Errorf("%s: %v, %v", v, now, err)
		}
		p.config["prevResult"] = json.RawMessage(out)
		if v < "0.4.0" {
			p.fails("CHECK", types.ErrIncompatibleCNIVersion, "does not allow CHECK")
		} else {
			p.works("CHECK")
		}
		p.works("DEL")
	}
	p := w.pod("c")
	p.config["cniVersion"] = "2.0.0"
	p.fails("ADD", types.ErrIncompatibleCNIVersion, "incompatible")
	if out := p.works("VERSION"); !strings.Contains(out, `"1.1.0"`) || !strings.Contains(out, `"0.4.0"`) {
		t.Error(out)
	}
}

// The next ADD completes one that was interrupted at any point.
func TestHalfway(t *testing.T) {
	w := newWorld(t)
	for i, left := range []tap.Config{
		// Killed before it was configured.
		{Name: "eth0", Persist: true, Owner: -1},
		tap.PodConfig([]netip.Addr{netip.MustParseAddr("10.1.0.99")}, packet.MAC{2, 0, 0, 0, 0, 1}, 1300), // still held
	} {
		p := w.pod(fmt.Sprint("c", i))
		f, err := tap.Create(p.ns, left)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if left.Persist {
			f.Close()
		}
		p.works("ADD")
		if err := p.inspect(); err != nil {
			t.Errorf("%d: %v", i, err)
		}
		p.works("DEL")
	}
	// An interface that something else made is not touched.
	p := w.pod("foreign")
	if err := tap.NewBridge(p.ns, "eth0", 0); err != nil {
		t.Fatal(err)
	}
	p.fails("ADD", types.ErrInternal, "eth0: it is a bridge, and should be a TAP")
	if !p.has("eth0") || w.got("foreign").Name != "" {
		t.Errorf("eth0 %v, %v", p.has("eth0"), w.all())
	}
	p.fails("DEL", types.ErrInternal, "it is a bridge")
}

// When the agent refuses, nothing is left behind.
func TestRefused(t *testing.T) {
	w := newWorld(t)
	p := w.pod("c1")
	for err, code := range map[error]uint{
		fmt.Errorf("%w: no address is free", cni.ErrTryLater): types.ErrTryAgainLater,
		errors.New("the address is outside"):                  types.ErrInternal,
	} {
		w.fail(err)
		p.fails("ADD", code, "add pod default/web-c1: prepare pod default/web-c1: "+err.Error())
	}
	w.fail(nil)
	p.works("ADD")
}

func TestAgentAway(t *testing.T) {
	w := newWorld(t)
	p := w.pod("c1")
	w.stop()
	clock := awake.Start()
	defer clock.Stop()
	p.fails("ADD", types.ErrTryAgainLater, "add pod default/web-c1: the agent of this node cannot be reached: dial unixpacket "+w.socket)
	p.fails("ADD", types.ErrTryAgainLater, "see that the agent of this node runs")
	if took := clock.Now(); took > 5*time.Second {
		t.Errorf("patience took %s", took)
	}
	if p.has("eth0") {
		t.Error("eth0 is there")
	}
	p.fails("STATUS", errLimited, "cannot be reached")
	p.config["cni.dev/valid-attachments"] = []cni.Attachment{}
	p.fails("GC", types.ErrTryAgainLater, "cannot be reached")
	p.works("DEL")
	// ADD waits for an agent that is starting.
	p.config["patience"] = 30
	added := make(chan *types.Error)
	go func() {
		_, err := p.run("ADD")
		added <- err
	}()
	select {
	case err := <-added:
		t.Errorf("ADD did not wait for the agent: %v", err)
	case <-time.After(200 * time.Millisecond): // the plugin waits, or has not come so far
	}
	w.start()
	if err := <-added; err != nil {
		t.Errorf("%+v", err)
	}
	p.config["prevResult"] = json.RawMessage(p.works("ADD"))
	p.works("CHECK")
	// Without the agent DEL still deletes the TAP, though others hold it.
	w.stop()
	p.fails("CHECK", types.ErrTryAgainLater, "cannot be reached")
	if !p.has("eth0") {
		t.Error("eth0 went with the agent's socket")
	}
	for range 2 {
		p.works("DEL")
		if p.has("eth0") {
			t.Error("eth0 is still there")
		}
	}
	w.start()
}

func TestNamespaceGone(t *testing.T) {
	w := newWorld(t)
	p := w.pod("c1")
	p.works("ADD")
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", filepath.Join(t.TempDir(), "none"), plain} {
		p.path = path
		p.works("DEL")
	}
	if w.count() != 0 {
		t.Errorf("left: %v", w.all())
	}
	p.fails("ADD", types.ErrInternal, "there is no network namespace at "+plain)
	p.path = filepath.Join(t.TempDir(), "none")
	p.fails("ADD", types.ErrInternal, "no such file")
	p.path = "/proc/self/ns/net"
	p.fails("ADD", types.ErrInvalidNetNS, "is the namespace that this plugin runs in")
	if w.count() != 0 {
		t.Errorf("left: %v", w.all())
	}
}

func TestCheck(t *testing.T) {
	w := newWorld(t)
	p := w.pod("c1")
	p.config["runtimeConfig"] = map[string]any{"bandwidth": map[string]any{"egressRate": 8 << 20, "egressBurst": 1 << 31, "ingressRate": 9 << 20}}
	out := p.works("ADD")
	if got := w.got("c1").Bandwidth; got == nil || *got != (cni.Bandwidth{EgressRate: 8 << 20, EgressBurst: 1 << 31, IngressRate: 9 << 20}) {
		t.Errorf("%+v", got)
	}
	if bits, err := tap.Limited(p.ns, "eth0"); bits != 8<<20 || err != nil {
		t.Errorf("limited to %d, %v", bits, err)
	}
	p.fails("CHECK", types.ErrInvalidNetworkConfig, "prevResult is missing")
	p.config["prevResult"] = json.RawMessage(out)
	p.works("CHECK")
	asked := p.config["runtimeConfig"]
	p.config["runtimeConfig"] = map[string]any{"bandwidth": map[string]any{"egressRate": 8 << 20, "egressBurst": 1 << 31, "ingressRate": 7 << 20}}
	p.fails("CHECK", types.ErrInternal, `the agent has the limits {"ingressRate":9437184,"egressRate":8388608,"egressBurst":2147483648}, and the runtime asks for {"ingressRate":7340032,`)
	p.config["runtimeConfig"] = map[string]any{"portMappings": []any{map[string]any{"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}}}
	p.fails("CHECK", types.ErrInternal, `the agent has the port mappings null, and the runtime asks for [{"hostPort":80,"containerPort":8080,"protocol":"tcp"}]`)
	p.config["runtimeConfig"] = asked
	p.config["prevResult"] = json.RawMessage(strings.ReplaceAll(out, "10.1.0.1", "10.1.0.77"))
	p.fails("CHECK", types.ErrInternal, "prevResult does not have the pod's address 10.1.0.1")
	p.config["prevResult"] = json.RawMessage(strings.ReplaceAll(out, "0a:58", "0a:59"))
	p.fails("CHECK", types.ErrInternal, "prevResult has the Ethernet address 0a:59:0a:01:00:01, and the pod 0a:58:0a:01:00:01")
	p.config["prevResult"] = json.RawMessage(strings.ReplaceAll(out, "eth0", "eth1"))
	p.fails("CHECK", types.ErrInternal, "prevResult has no interface eth0")
	p.config["prevResult"] = json.RawMessage(out)
	if err := tap.Limit(p.ns, "eth0", tap.Rate{Bits: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	p.fails("CHECK", types.ErrInternal, "it is limited to 1048576 bits per second, and should be to 8388608")
	if err := tap.SetMTU(p.ns, "eth0", 1300); err != nil {
		t.Fatal(err)
	}
	p.fails("CHECK", types.ErrInternal, "check pod default/web-c1: inspect interface eth0: its MTU is 1300, and should be 1400")
	if err := tap.Remove(p.ns, "eth0"); err != nil {
		t.Fatal(err)
	}
	p.fails("CHECK", types.ErrInternal, "there is no such interface")
	p.works("DEL")
	p.fails("CHECK", types.ErrInternal, "the pod is not attached")
}

// A plugin before this one has its interface, and this one adds its own.
func TestChained(t *testing.T) {
	w := newWorld(t)
	p := w.pod("c1")
	p.config["prevResult"] = json.RawMessage(`{"cniVersion":"1.1.0","interfaces":[{"name":"net1","sandbox":"/x"}],"ips":[{"address":"192.168.7.2/24","interface":0}],"dns":{}}`)
	out := p.works("ADD")
	var r types100.Result
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Interfaces) != 2 || r.Interfaces[0].Name != "net1" || r.Interfaces[1].Name != "eth0" || len(r.IPs) != 3 ||
		*r.IPs[0].Interface != 0 || *r.IPs[1].Interface != 1 || *r.IPs[2].Interface != 1 {
		t.Error(out)
	}
	p.config["prevResult"] = json.RawMessage(out)
	p.works("CHECK")
	p.config["prevResult"] = json.RawMessage(`{"cniVersion":"0.9.9"}`)
	p.fails("ADD", types.ErrDecodingFailure, "prevResult cannot be read")
}

func TestStatusAndCollect(t *testing.T) {
	w := newWorld(t)
	p := w.pod("c1")
	p.works("STATUS")
	w.mu.Lock()
	w.notReady = true
	w.mu.Unlock()
	p.fails("STATUS", errNotAvailable, "no podCIDR yet")
	p.fails("GC", types.ErrInvalidNetworkConfig, "did not say which attachments")
	valid := []cni.Attachment{{ContainerID: "c1", IfName: "eth0"}}
	for _, field := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} {
		p.config[field] = valid
		p.works("GC")
		if network, got := w.gc(); network != "net" || !slices.Equal(got, valid) {
			t.Errorf("%s: collected %s but %v", field, network, got)
		}
		delete(p.config, field)
	}
	p.config["cni.dev/valid-attachments"] = []cni.Attachment{}
	p.works("GC")
	if network, got := w.gc(); network != "net" || len(got) != 0 {
		t.Errorf("collected %s but %v", network, got)
	}
}

func TestConfig(t *testing.T) {
	w := newWorld(t)
	p := w.pod("c1")
	for field, bad := range map[string]any{"socket": "agent.sock", "patience": 100, "runtimeConfig": map[string]any{"ips": []string{"10.1.0.300"}}} {
		good := p.config[field]
		p.config[field] = bad
		p.fails("ADD", types.ErrInvalidNetworkConfig, field)
		p.config[field] = good
	}
	delete(p.config, "runtimeConfig")
	p.config["runtimeConfig"] = map[string]any{"ips": []string{"10.1.0.7/24", "fd00:1::7"}}
	// This runtime does not know pods.
	p.args = "K8S_POD_NAME=;FOO=bar"
	p.works("ADD")
	if got := w.got("c1"); got.Namespace != "cni.net" || got.Name != "c1" || got.Addrs[0].String() != "10.1.0.7" || got.Addrs[1].String() != "fd00:1::7" {
		t.Errorf("%+v", got)
	}
}
