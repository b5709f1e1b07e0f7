package baseline

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"tapestry.dev/tapestry/bench"
	"tapestry.dev/tapestry/bench/process"
	"tapestry.dev/tapestry/test/lab"
)

// Direct returns the load generator's web server without a proxy before it, over one veth pair.
func Direct() (bench.Topology, error) {
	return build("direct", func(p *pair) error {
		p.targets = map[bench.Service]netip.AddrPort{bench.HTTP: netip.AddrPortFrom(serverAddr.Addr(), bench.HTTPPort)}
		return p.wire()
	})
}

// Nginx returns nginx as an ingress: bench.HTTPHost with the path prefix / leads to the load generator's web server,
// over HTTP and, with a self-signed certificate, over HTTPS and HTTP/2. The other proxies are set up in the same way:
// each has a namespace of its own between client and server, as many workers as there are processors, persistent
// connections to the backend, no access log, and the client's address in X-Forwarded-For.
func Nginx() (bench.Topology, error) {
	return proxied(proxy{
		name: "nginx", install: "apt-get install nginx-light", config: nginxConfig,
		args: func(path proxyPaths) []string { return []string{"-e", "stderr", "-p", path.dir, "-c", path.config} },
	})
}

// HAProxy returns HAProxy as an ingress; see Nginx.
func HAProxy() (bench.Topology, error) {
	return proxied(proxy{
		name: "haproxy", install: "apt-get install haproxy", config: haproxyConfig,
		args: func(path proxyPaths) []string { return []string{"-db", "-f", path.config} },
	})
}

// Caddy returns Caddy, a proxy written in Go, as an ingress; see Nginx. "make peers" builds it.
func Caddy() (bench.Topology, error) {
	return proxied(proxy{
		name: "caddy", install: makePeers, config: caddyConfig,
		args: func(path proxyPaths) []string {
			return []string{"run", "--adapter", "caddyfile", "--config", path.config}
		},
	})
}

// proxy is a program that can be an ingress.
type proxy struct {
	name, install string
	config        func(proxyPaths) string
	args          func(proxyPaths) []string
}

// proxyPaths lists the files of a proxy: its own directory, its configuration, and a certificate with its key, both as
// two files and as one.
type proxyPaths struct {
	dir, config            string
	certificate, key, both string
}

// keptIdle is how many idle connections a proxy may keep to the backend: the default of ingress-nginx.
const keptIdle = 320

// backend is the web server behind a proxy.
var backend = netip.AddrPortFrom(behindAddr.Addr(), bench.HTTPPort)

// proxied makes a client, the proxy, and a server behind it.
func proxied(x proxy) (bench.Topology, error) {
	path, err := process.Find(x.name, x.install)
	if err != nil {
		return nil, err
	}
	return build(x.name, func(p *pair) error {
		middle, err := p.middle()
		if err != nil {
			return err
		}
		dir, err := p.tempDir()
		if err != nil {
			return err
		}
		paths, err := x.write(dir)
		if err != nil {
			return err
		}
		p.targets = map[bench.Service]netip.AddrPort{
			bench.HTTP: netip.AddrPortFrom(middleAddr.Addr(), 80), bench.HTTPS: netip.AddrPortFrom(middleAddr.Addr(), 443),
		}
		cmd := exec.Command(path, x.args(paths)...)
		cmd.Dir = dir
		// Caddy keeps files in these directories.
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
		return p.daemon(middle, cmd, func(ctx context.Context) error {
			return errors.Join(
				process.Listening(middle, p.targets[bench.HTTP])(ctx),
				process.Listening(middle, p.targets[bench.HTTPS])(ctx))
		})
	})
}

// write writes the proxy's files into dir.
func (x proxy) write(dir string) (proxyPaths, error) {
	certificate, key, err := lab.SelfSigned(bench.HTTPHost)
	if err != nil {
		return proxyPaths{}, err
	}
	paths := proxyPaths{
		dir: dir, config: filepath.Join(dir, "config"), certificate: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key"),
		both: filepath.Join(dir, "tls.pem"),
	}
	return paths, errors.Join(
		os.WriteFile(paths.config, []byte(x.config(paths)), 0o600),
		os.WriteFile(paths.certificate, certificate, 0o600),
		os.WriteFile(paths.key, key, 0o600),
		os.WriteFile(paths.both, append(certificate, key...), 0o600))
}

// nginxConfig keeps bodies of up to 128 KiB in memory, and keeps connections for as long as a measurement takes.
func nginxConfig(path proxyPaths) string {
	return fmt.Sprintf(`user root;
daemon off;
worker_processes %[1]d;
pid nginx.pid;
error_log stderr;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path body;
	fastcgi_temp_path fastcgi;
	proxy_temp_path proxy;
	scgi_temp_path scgi;
	uwsgi_temp_path uwsgi;
	keepalive_requests 1000000;
	ssl_certificate %[2]s;
	ssl_certificate_key %[3]s;
	ssl_session_cache shared:tls:10m;
	upstream backend {
		server %[4]s;
		keepalive %[5]d;
		keepalive_requests 1000000;
	}
	server {
		listen 80 reuseport;
		listen 443 ssl http2 reuseport;
		server_name %[6]s;
		location / {
			proxy_pass http://backend;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Proto $scheme;
			proxy_buffers 16 8k;
			proxy_max_temp_file_size 0;
		}
	}
	server {
		listen 80 default_server;
		listen 443 ssl http2 default_server;
		return 404;
	}
}
`, runtime.NumCPU(), path.certificate, path.key, backend, keptIdle, bench.HTTPHost)
}

// haproxyConfig lets every request use any idle connection to the backend, even a client's first request.
func haproxyConfig(path proxyPaths) string {
	return fmt.Sprintf(`global
	nbthread %[1]d
	maxconn 4096
defaults
	mode http
	timeout connect 5s
	timeout client 60s
	timeout server 60s
	http-reuse always
frontend ingress
	bind :80
	bind :443 ssl crt %[2]s alpn h2,http/1.1
	option forwardfor
	http-request set-header X-Forwarded-Proto https if { ssl_fc }
	http-request set-header X-Forwarded-Proto http unless { ssl_fc }
	use_backend backend if { hdr(host),field(1,:) -i %[3]s } { path_beg / }
	http-request return status 404 unless { hdr(host),field(1,:) -i %[3]s } { path_beg / }
backend backend
	server server %[4]s pool-max-conn %[5]d
`, runtime.NumCPU(), path.both, bench.HTTPHost, backend, keptIdle)
}

// caddyConfig turns off Caddy's requests for certificates, its administration endpoint, and the saving of its
// configuration.
func caddyConfig(path proxyPaths) string {
	return fmt.Sprintf(`{
	admin off
	auto_https off
	persist_config off
	log {
		level ERROR
	}
	servers {
		protocols h1 h2
	}
}
(backend) {
	reverse_proxy %[1]s {
		transport http {
			compression off
			keepalive_idle_conns_per_host %[2]d
		}
	}
}
http://%[3]s {
	import backend
}
https://%[3]s {
	tls %[4]s %[5]s
	import backend
}
http:// {
	respond 404
}
`, backend, keptIdle, bench.HTTPHost, path.certificate, path.key)
}
