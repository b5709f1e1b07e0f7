package image

import (
	"debug/elf"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Pause is the image of the process that holds a pod's namespaces.
const Pause = "registry.k8s.io/pause:3.10.1"

const tests = "registry.k8s.io/e2e-test-images/"

var path = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// tools lists the Debian packages whose programs the official tests call in their containers. wget must be the real
// one.
var tools = []string{
	"bind9-dnsutils", "ca-certificates", "curl", "iperf", "iproute2", "iputils-ping", "netcat-openbsd", "procps", "wget",
}

// Kubernetes returns the images that every cluster and the official network tests need: pause, busybox, agnhost, and
// substitutes for two web servers, whose content no test looks at. bin has the programs that test/kubernetes/build
// makes.
func (c Cache) Kubernetes(bin string) ([]Image, error) {
	pause, err := c.Files(File{Name: "pause", Source: filepath.Join(bin, "pause")})
	if err != nil {
		return nil, err
	}
	busybox, err := c.busybox()
	if err != nil {
		return nil, fmt.Errorf("busybox: %w", err)
	}
	debian, err := c.Debian(tools...)
	if err != nil {
		return nil, err
	}
	agnhost, err := c.Files(
		File{Name: "agnhost", Source: filepath.Join(bin, "agnhost")},
		File{Name: "agnhost-2", Link: "agnhost"},
		File{Name: "serve", Source: filepath.Join(bin, "serve")}, // of our own scenarios
		File{Name: "localhost.crt", Source: filepath.Join(bin, "localhost.crt"), Mode: 0o644},
		File{Name: "localhost.key", Source: filepath.Join(bin, "localhost.key"), Mode: 0o644},
		File{Name: "uploads/"},
		File{Name: "usr/local/bin/iperf", Link: "/usr/bin/iperf"},
	)
	if err != nil {
		return nil, err
	}
	userland := []Layer{debian, agnhost}
	images := []Image{
		{Tags: []string{Pause}, Layers: []Layer{pause}, Config: Config{Entrypoint: []string{"/pause"}, User: "65535:65535"}},
		{Tags: []string{tests + "busybox:1.37.0-1"}, Layers: []Layer{busybox}, Config: Config{Cmd: []string{"sh"}, Env: path}},
		{Tags: []string{tests + "agnhost:2.56", tests + "agnhost:2.45", tests + "jessie-dnsutils:1.7"}, Layers: userland,
			Config: Config{Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: path}},
	}
	// A server that crafts packets, and tells whether they end a connection.
	boom, err := c.Files(File{Name: "regression-issue-74839", Source: filepath.Join(bin, "regression-issue-74839")})
	if err != nil {
		return nil, err
	}
	images = append(images, Image{
		Tags: []string{tests + "regression-issue-74839:1.2"}, Layers: []Layer{boom}, Config: Config{Entrypoint: []string{"/regression-issue-74839"}},
	})
	server := Config{Cmd: []string{"/agnhost", "netexec", "--http-port=80", "--udp-port=-1"}, Env: path}
	return append(images, Image{
		Tags:   []string{tests + "nginx:1.14-4", tests + "nginx:1.15-4", tests + "httpd:2.4.38-4", tests + "httpd:2.4.39-4"},
		Layers: userland, Config: server,
	}), nil
}

func (c Cache) busybox() (Layer, error) {
	program, err := exec.LookPath("busybox")
	if err != nil {
		return Layer{}, fmt.Errorf("%w: install the package busybox-static", err)
	}
	if err := static(program); err != nil {
		return Layer{}, err
	}
	applets, err := exec.Command(program, "--list").Output()
	if err != nil {
		return Layer{}, err
	}
	files := []File{
		{Name: "bin/"}, {Name: "etc/"}, {Name: "home/"}, {Name: "root/"}, {Name: "sbin/"}, {Name: "tmp/", Mode: 0o1777},
		{Name: "usr/"}, {Name: "usr/bin/"}, {Name: "usr/sbin/"}, {Name: "var/"},
		{Name: "bin/busybox", Source: program},
		{Name: "etc/passwd", Body: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n", Mode: 0o644},
		{Name: "etc/group", Body: "root:x:0:\nnogroup:x:65534:\n", Mode: 0o644},
	}
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			files = append(files, File{Name: "bin/" + a, Link: "busybox"})
		}
	}
	return c.Files(files...)
}

// static returns an error unless the program runs in an image without libraries.
func static(program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s needs libraries: install the package busybox-static in its place", program)
		}
	}
	return nil
}

// Program returns an image of one static program.
func (c Cache) Program(tag, program string) (Image, error) {
	l, err := c.Files(File{Name: "etc/"}, File{Name: "tmp/", Mode: 0o1777}, File{Name: "program", Source: program})
	return Image{Tags: []string{tag}, Layers: []Layer{l}, Config: Config{Entrypoint: []string{"/program"}, Env: path}}, err
}
