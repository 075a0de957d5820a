#!/usr/bin/env bash
# Builds kube-apiserver 1.20 from the source package of Debian 12, for `make test-kubernetes`: no registry has the program itself.
#   tests/build-kube-apiserver.sh FOLDER     leaves FOLDER/kube-apiserver; ten minutes on one core, 2 GB of disk
# It needs Debian 12 with apt, and changes nothing outside of FOLDER.
set -euo pipefail
folder=$(realpath -m "$1")
mkdir -p "$folder"/apt/{lists/partial,cache/archives/partial,sources.d} "$folder"/{packages,root,go/src/k8s.io}
cd "$folder"

# The machine's own sources, and their source packages besides.
for list in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
  if [ -f "$list" ]; then sed -e 's/^Types: deb$/Types: deb deb-src/' -e 's/^deb \(.*\)$/deb \1\ndeb-src \1/' "$list" >"apt/sources.d/$(basename "$list")"; fi
done
cat >apt/conf <<END
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$folder/apt/sources.d";
Dir::State::lists "$folder/apt/lists";
Dir::Cache "$folder/apt/cache";
APT::Sandbox::User "root";
END
export APT_CONFIG=$folder/apt/conf
apt-get update
(cd packages && apt-get download golang-1.19-go golang-1.19-src && apt-get source --download-only kubernetes=1.20.5+really1.20.2-1.1+deb12u1)
for package in packages/golang-*.deb; do dpkg -x "$package" root; done
rm -rf kubernetes && mkdir kubernetes && tar xzf packages/kubernetes_*.orig.tar.gz --strip-components 1 -C kubernetes
ln -sfn "$folder/kubernetes" go/src/k8s.io/kubernetes

export GOROOT=$folder/root/usr/lib/go-1.19 GOPATH=$folder/go GOCACHE=$folder/cache GO111MODULE=off CGO_ENABLED=0 GOFLAGS=-p=1
export PATH=$GOROOT/bin:$PATH
cd go/src/k8s.io/kubernetes

# From Go 1.18 on an iteration over a map is begun in memory of the caller, which the vendored reflect2 does not know.
sed -i -e 's/^func mapiterinit(rtype unsafe.Pointer, m unsafe.Pointer) \*hiter$/func mapiterinit(rtype, m unsafe.Pointer, it *hiter)/' \
  -e 's|^\t// rest fields are ignored$|\trest  [10]uintptr|' vendor/github.com/modern-go/reflect2/unsafe_link.go
sed -i -e 's/^\treturn &UnsafeMapIterator{$/\tit := new(hiter)\n\tmapiterinit(type2.rtype, *(*unsafe.Pointer)(obj), it)\n\treturn \&UnsafeMapIterator{/' \
  -e 's/^\t\thiter:      mapiterinit.*$/\t\thiter:      it,/' vendor/github.com/modern-go/reflect2/unsafe_map.go

# The descriptions of its types are made before it is built; the source package comes without them.
go build -o "$folder/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
tagged=$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg vendor/k8s.io/*/ plugin cmd | grep -vE '_test.go|code-generator/|sample-apiserver/|kube-openapi/|gengo/')
directories=$(xargs -n1 dirname <<<"$tagged" | LC_ALL=C sort -u | sed 's|^|k8s.io/kubernetes/|' | paste -sd,)
"$folder/openapi-gen" -i "$directories" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
  -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r "$folder/violations"

flags="-s -w"
for package in component-base/version client-go/pkg/version; do
  for value in gitVersion=v1.20.2 gitMajor=1 gitMinor=20 gitTreeState=clean; do flags+=" -X k8s.io/kubernetes/vendor/k8s.io/$package.$value"; done
done
go build -ldflags "$flags" -o "$folder/kube-apiserver" ./cmd/kube-apiserver
"$folder/kube-apiserver" --version
